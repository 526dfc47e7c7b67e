"""A labelling config, compiled: objects, controls, conditions, schemas, rules, grammar. No I/O."""
