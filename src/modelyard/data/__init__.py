"""Reading, typing, framing, splitting and batching: mechanism only, no task and no verb."""
