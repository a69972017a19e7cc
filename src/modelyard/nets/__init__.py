"""torch modules: one family per file, each with its `Config`, what it `ACCEPTS` and its `TRAIN` defaults. No task, no verb."""
