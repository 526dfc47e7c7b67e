"""From a task to a draft: caches, near-duplicates, examples, the model, rules, the score, the cascade.

drafter.py     many tasks within a deadline          steps.py            the steps of one draft
asking.py      retries, and answers sent back        versions.py         what decides a draft, and its hash
drafts.py      a draft, and what its page shows      bulk.py             a whole project, stored in batches
draft_cache.py, cache.py, redis_cache.py             drafts of equal tasks
near_duplicates.py, neighbours.py, duplicates.py     answers to nearly equal tasks
examples.py    corrections that prompts show         escalation.py       the larger model of a cascade
cascade.py, cascade_page.py                          the threshold of a cascade, and its page
"""
