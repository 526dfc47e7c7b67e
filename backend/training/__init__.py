"""Training adapters: an environment of its own (`scripts/setup train`), a process of its own (scripts/train).

Sees of ours only the folder, the rows and the tokens of a dataset, and the errors; nobody imports it.
`fit` alone imports torch, TRL and PEFT; everything else is told before they are loaded.
"""
