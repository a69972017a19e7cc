"""Asks the served assistant through OpenAI's own client and prints the answer while it is written.

modelyard serve runs/preferred-0001 --port 8000
python client.py http://127.0.0.1:8000 "I'm looking for a place to eat in San Jose."
"""

from __future__ import annotations

import sys

from openai import OpenAI


def main(url: str, question: str) -> None:
    """One question, one streamed answer; any key will do."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": question}]
    for piece in client.chat.completions.create(model=model, messages=messages, stream=True, max_tokens=60, temperature=0):  # type: ignore[call-overload]
        print(piece.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
