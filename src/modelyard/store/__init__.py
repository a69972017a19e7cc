"""Model folders, run folders and their parts on disk: manifest, hashes, safe loading. Nothing executable is read or written."""
