"""Training adapters in an environment and a process of its own: `draftloop setup train`, `draftloop train`.

Sees of ours only the folder, the rows and the tokens of a dataset, and the errors; only `cli` imports it.
`fit` alone imports torch, TRL and PEFT; everything else is told before they are loaded.
"""
