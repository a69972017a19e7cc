"""The `train` section: every setting of training; None leaves the choice to the model family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from modelyard.settings import Between, Duration
from modelyard.verbs.train.methods import DpoConfig, GrpoConfig, KtoConfig, LoraConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """`train`: how long, how fast, with what brakes; a duration alone is the budget."""

    SHORTHAND: ClassVar[str] = "budget"

    budget: Duration | None = None
    """Wall time for fitting, e.g. 5m; turned into a number of steps at the start, so that a resumed run is the same run."""
    preset: Literal["quick", "balanced", "best"] = "quick"
    """What `model: auto` does with tables: quick fits one family; balanced and best try many, judge each on rows it did not learn
    from, and average the best (5 minutes and 20, unless budget says otherwise)."""
    ensemble: Literal["select", "stack", "mean", "vote", "single"] = "select"
    """How a search combines its candidates: the weighted mean that greedy selection finds, a linear model over their answers, the mean
    or the vote of the five best, or the best one alone."""
    distil: str | dict[str, Any] | None = None
    """A model (`trees`, `{name: linear, …}`) that learns the answers of the whole of a search and is saved in its place: one small model."""
    folds: Annotated[int, Between(2, 100)] | None = None
    """Cross-validation: the whole training is repeated for so many folds before the model itself is fitted; split as data.split says."""
    repeats: Annotated[int, Between(1, 100)] = 1
    """How often cross-validation is repeated with other folds."""
    epochs: Annotated[int, Between(1)] | None = None
    """Passes over the training examples at most."""
    batch: Annotated[int, Between(1)] | None = None
    """Examples of one step."""
    batch_tokens: Annotated[int, Between(1)] | None = None
    """Tokens of one step, inputs and outputs together: as many texts of like length as have about so many, instead of `batch`."""
    pack: bool | None = None
    """Of texts that are written: true packs several into a row, false gives each its own; without it a corpus is cut into blocks of equal
    length and answers have a row each."""
    lr: Annotated[float, Between(0, 100)] | None = None
    """Learning rate (the peak, for schedules that move it)."""
    optimiser: Literal["adamw", "adam", "sgd", "muon"] | None = None
    """adamw and sgd (Nesterov momentum) suit most; muon orthogonalises matrix steps in float32."""
    momentum: Annotated[float, Between(0, 0.9999)] = 0.9
    """Of sgd and muon."""
    weight_decay: Annotated[float, Between(0, 10)] | None = None
    """Decoupled decay (L2) of matrices; biases and normalisation are left alone."""
    l1: Annotated[float, Between(0, 10)] = 0.0
    """L1 penalty on matrices, added to the loss."""
    schedule: Literal["one-cycle", "cosine", "plateau", "constant"] | None = None
    """How the learning rate moves over the run."""
    warmup: Annotated[float, Between(0, 0.9)] | None = None
    """Share of the steps in which the rate rises from 1/25."""
    dropout: Annotated[float, Between(0, 0.95)] | None = None
    """Dropout of the fused features before the heads."""
    label_smoothing: Annotated[float, Between(0, 0.9)] | None = None
    """Probability given to the other labels."""
    augment: str | dict[str, Any] | None = None
    """`standard`, `none`, or a map of image operations (crop, flip, rotate, cutout …)."""
    mixup: Annotated[float, Between(0, 10)] | None = None
    """alpha of Beta(alpha, alpha) for mix-up of images; 0 is off."""
    freeze: int | str | list[str] | None = None
    """What does not learn: encoders (feature extraction: only fusion and heads do), a number (so many of the lowest layers), or names of
    modules such as encoders.text.embeddings. For nets."""
    unfreeze: Annotated[int, Between(1)] | None = None
    """Gradual unfreezing: the heads learn first, and every so many epochs one layer more from the top. For nets."""
    layer_decay: Annotated[float, Between(0.01, 1)] | None = None
    """Each layer learns at this share of the rate of the one above it (0.38 is Howard & Ruder's 1/2.6); 1 is the same rate for all. For nets."""
    lora: LoraConfig | None = None
    """Small matrices learn beside those of a base, which stay as they are (LoRA, DoRA, QLoRA); `{}` takes the defaults."""
    dpo: DpoConfig | None = None
    """Goes on from a base with pairs of a better and a worse answer (direct preference optimisation)."""
    kto: KtoConfig | None = None
    """Goes on from a base with answers marked good or bad."""
    grpo: GrpoConfig | None = None
    """Goes on from a base with answers that it writes itself and that a rule rewards."""
    temperature: Annotated[float, Between(0.001, 10)] | None = None
    """Of contrastive losses: similarities are divided by it; without it 0.05."""
    mask: Annotated[float, Between(0.01, 0.9)] = 0.15
    """Share of the tokens that fill-mask chooses in every epoch: 80 % of them are hidden, 10 % replaced, 10 % stay."""
    balance: Literal["over", "under", "smote"] | None = None
    """Rows of rare labels repeated or made up (SMOTE), or of frequent ones left out: of the training rows alone, after the split and in
    every fold. Scores then lean to the rare labels; class_weights does so without made rows."""
    balance_ratio: Annotated[float, Between(0.001, 1)] = 1.0
    """Smallest share that a label has of the most frequent one after balancing."""
    output_weights: dict[str, Annotated[float, Between(0, 1e6)]] | None = None
    """output → weight of its loss in a net with several outputs; those not named weigh 1."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """balanced, or label → weight: rare labels count more in the loss. Estimators weigh the rows of the label."""
    loss: Literal["focal", "crf", "cross-entropy"] | None = None
    """focal lets sure examples count less (Lin et al. 2017), for labels and label sets in nets; without it cross-entropy. Tags: crf learns what
    follows what (the default), cross-entropy decides each word for itself."""
    gamma: Annotated[float, Between(0, 10)] = 2.0
    """Of the focal loss: 0 is cross-entropy."""
    calibration: Literal["none", "temperature", "platt", "isotonic", "auto"] = "none"
    """Makes scores true frequencies, fitted on the validation rows after training: temperature (Guo et al. 2017), platt (Platt 1999; more
    than two labels: a scale and a shift of each label's log-score), isotonic (Zadrozny & Elkan 2002; more than two labels: each against
    the rest), or the best of them by cross-validated log-loss."""
    coverage: Annotated[float, Between(0.5, 0.999)] | None = None
    """Promise of conformal answers, e.g. 0.9: label sets `y.set` or intervals `y.low` … `y.high` that hold the truth this often."""
    sets: Literal["lac", "aps", "raps"] = "lac"
    """How label sets are made: lac is smallest and may be empty (Sadinle et al. 2019), aps suits hard rows and holds at least one label
    (Romano et al. 2020), raps is aps with fewer improbable labels (Angelopoulos et al. 2021)."""
    intervals: Literal["scaled", "constant"] = "scaled"
    """scaled: wider where answers of that size were farther off; constant: the same width everywhere."""
    accumulate: Annotated[int, Between(1)] = 1
    """Parts that a batch is cut into to save memory; the step is the same."""
    clip: Annotated[float, Between(0)] | None = None
    """Largest norm of the gradient."""
    ema: Annotated[float, Between(0, 0.99999)] | None = None
    """Decay of the running average of the weights that is evaluated and saved; 0 is off."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto takes bfloat16 where the hardware computes in it: on GPUs, and on CPUs with AVX-512 BF16 or AMX for wide language models."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile; auto: on a GPU only, since it costs half a minute at the start."""
    patience: Annotated[int, Between(0)] | None = None
    """Epochs without a better validation loss after which training stops; 0 never stops."""
    watch: str | None = None
    """A metric of the validation rows (entity_f1, output.metric) that patience, the plateau and the choice of the best epoch go by, instead of
    the loss. For nets."""
    seed: Annotated[int, Between(0, 2**31)] = 0
    """Of weights, order, dropout and augmentation."""
    threads: Annotated[int, Between(1)] | None = None
    """CPU threads; results are bit-equal for equal numbers."""
    checkpoint_every: Duration = 60.0
    """Seconds between checkpoints (one is written after the last epoch too)."""
    smoke: bool = True
    """Two steps, an evaluation, a save and a replay on a copy before the real run."""


DEFAULTS: dict[str, Any] = {
    "epochs": 30, "batch": 128, "lr": 1e-3, "optimiser": "adamw", "weight_decay": 1e-2, "schedule": "cosine", "warmup": 0.1,
    "dropout": 0.0, "label_smoothing": 0.0, "augment": "none", "mixup": 0.0, "ema": 0.0, "patience": 0,
}  # fmt: skip
"""Used where neither the user nor the family says anything."""


def resolve(config: TrainConfig, *families: dict[str, object]) -> tuple[TrainConfig, dict[str, str]]:
    """(settings without None, origin of each): the user's value, else the first family that names it, else `DEFAULTS`."""
    from dataclasses import fields, replace

    known = {f.name for f in fields(config)}
    if stray := {key for family in families for key in family} - known:
        raise TypeError(f"a model family names training settings that do not exist: {', '.join(sorted(stray))}")
    changes: dict[str, Any] = {}
    origins = {}
    for name in sorted(known):
        named = next((family[name] for family in families if name in family), None)
        if getattr(config, name) is None and (named is not None or name in DEFAULTS):
            changes[name] = DEFAULTS[name] if named is None else named
            origins[f"train.{name}"] = "default" if named is None else "model family"
    return replace(config, **changes), origins
