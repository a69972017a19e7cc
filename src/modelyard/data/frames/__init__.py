"""A frame says which rows make an example; one file each, with `Config` and `examples`."""
