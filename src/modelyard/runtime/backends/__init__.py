"""A backend supplies a model's graphs; one file each, with `load(folder, manifest, pipeline, arrays, options) -> {name: Graph}`."""
