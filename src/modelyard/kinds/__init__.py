"""What a value is: one file per kind, each with its check, JSON form, encodings, decoding, picture, distance and summary."""
