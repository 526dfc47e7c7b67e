"""Ask for one completion after the other with OpenAI's client, as backends that draft tasks in turn do.

Runs where the openai package is: `openai_in_turn.py URL`, a JSON list of request bodies on stdin; prints the
seconds that it took.
"""

import json
import sys
import time

from openai import OpenAI  # type: ignore[import-not-found,unused-ignore]


def main() -> None:
    """Read, ask, print."""
    client = OpenAI(base_url=sys.argv[1], api_key="none", timeout=600, max_retries=0)
    bodies = json.load(sys.stdin)
    own = ("chat_template_kwargs", "structured_outputs")  # what the client does not know by name
    started = time.perf_counter()
    for body in bodies:
        extra = {key: body[key] for key in own if key in body}
        known = {key: value for key, value in body.items() if key not in own}
        client.chat.completions.create(**known, extra_body=extra)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
