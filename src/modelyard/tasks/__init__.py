"""What one output column predicts: one file per task, each a `TASK` value that names its parts."""
