"""Training of adapters, in an environment of its own: `draftloop setup train`, `draftloop train`.

Imports only a dataset's folder and rows, `model`'s tokens, `support` and `errors`; only `cli` imports it.
Only `fit` and `process_group` import torch, so that all other errors are reported before it is loaded.
"""
