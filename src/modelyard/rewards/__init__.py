"""What `train.grpo` rewards: each file judges one answer, `reward(text, truth, prompt, argument)` → a number, the larger the better.

`truth` is the row's `completion`, `argument` what stands behind the colon of `train.grpo.reward`.
"""
