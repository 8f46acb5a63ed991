"""One kind of reward model per file; the file's name is the kind's name. See ``redline_model.scorer``."""
