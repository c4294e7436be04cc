#!/usr/bin/env python3
"""Talks to a running rwkv-serve through the official openai client (python3 -m pip install openai).

    tools/check_server.py http://127.0.0.1:8080 [KEY]

Prints one line per check and ends with 1 if one fails. Needs a model that accepts text."""
import asyncio
import sys

import openai

FAILED = []


def check(name, good, shown=""):
    print(("ok    " if good else "FAILED"), name, shown)
    if not good:
        FAILED.append(name)


def refused(name, kind, call):
    try:
        call()
        check(name, False, "was answered")
    except kind as error:
        check(name, True, f"{type(error).__name__} {error.status_code}: {error.body['message']}")


def completions(client, model):
    ask = dict(model=model, prompt="Once upon a time", max_tokens=12, seed=5)
    first = client.completions.create(**ask)
    check("completion", first.object == "text_completion" and first.usage.completion_tokens <= 12)
    check("a seed gives the same text again",
          client.completions.create(**ask).choices[0].text == first.choices[0].text)
    pieces = [c.choices[0].text for c in client.completions.create(stream=True, **ask)]
    check("a stream says the same", "".join(pieces) == first.choices[0].text, f"{len(pieces)} pieces")
    many = client.completions.create(model=model, prompt=["a", "b"], n=2, max_tokens=3, logprobs=2)
    check("two prompts, n = 2", [c.index for c in many.choices] == [0, 1, 2, 3])
    log_probs = many.choices[0].logprobs
    check("log-probabilities", len(log_probs.tokens) == len(log_probs.token_logprobs)
          and max(log_probs.token_logprobs, default=0) <= 0)
    greedy = [client.completions.create(model=model, prompt="abc", max_tokens=8, temperature=0)
              for _ in range(2)]
    check("greedy", greedy[0].choices[0].text == greedy[1].choices[0].text)


def chats(client, model):
    ask = dict(model=model, max_completion_tokens=16, seed=3, messages=[
        {"role": "system", "content": "You are brief."}, {"role": "user", "content": "Hello!"}])
    first = client.chat.completions.create(logprobs=True, top_logprobs=3, **ask)
    choice = first.choices[0]
    check("chat", choice.message.role == "assistant" and choice.finish_reason in ("stop", "length"),
          repr(choice.message.content))
    check("log-probabilities of a chat", all(len(t.top_logprobs) == 3
                                             for t in choice.logprobs.content))
    text, usage, ends = "", None, []
    stream = client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask)
    for chunk in stream:
        usage = chunk.usage or usage
        for c in chunk.choices:
            text += c.delta.content or ""
            ends += [c.finish_reason] if c.finish_reason else []
    check("a stream of a chat says the same", text == choice.message.content
          and ends == [choice.finish_reason])
    check("usage at the end of a stream", usage is not None
          and usage.completion_tokens == first.usage.completion_tokens)
    parts = client.chat.completions.create(model=model, max_tokens=2, messages=[
        {"role": "user", "content": [{"type": "text", "text": "Hello!"}]}])
    check("content in parts", parts.choices[0].index == 0)
    with client.chat.completions.create(stream=True, model=model, messages=ask["messages"]) as left:
        for _ in left:
            break
    check("a stream that is left early", True)
    client.chat.completions.create(model=model, max_tokens=2, messages=ask["messages"],
                                   extra_body={"top_k": 5, "penalty_decay": 0.99, "min_p": 0.01})
    check("members beyond OpenAI's", True)


def errors(client, model, base, key):
    user = [{"role": "user", "content": "x"}]
    chat = client.chat.completions.create
    refused("another model", openai.NotFoundError, lambda: chat(model="gpt-0", messages=user))
    refused("a bad temperature", openai.BadRequestError,
            lambda: chat(model=model, messages=user, temperature=-3))
    refused("an unknown member", openai.BadRequestError,
            lambda: chat(model=model, messages=user, extra_body={"temperatur": 1}))
    refused("no messages", openai.BadRequestError, lambda: chat(model=model, messages=[]))
    refused("tools", openai.APIStatusError, lambda: chat(model=model, messages=user, tools=[
        {"type": "function", "function": {"name": "f", "parameters": {}}}]))
    if key:
        other = openai.OpenAI(base_url=base, api_key=key + "x", max_retries=0)
        refused("a wrong key", openai.AuthenticationError, other.models.list)


async def together(base, key, model):
    client = openai.AsyncOpenAI(base_url=base, api_key=key or "none")

    async def one(i):
        stream = await client.completions.create(model=model, prompt="Once", max_tokens=20,
                                                 seed=i % 4, stream=True)
        return "".join([c.choices[0].text async for c in stream])
    texts = await asyncio.gather(*[one(i) for i in range(16)])
    check("16 streams at once, equal seeds equal texts",
          all(texts[i] == texts[i % 4] for i in range(16)))


def main():
    if len(sys.argv) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    base, key = sys.argv[1].rstrip("/") + "/v1", sys.argv[2] if len(sys.argv) == 3 else ""
    client = openai.OpenAI(base_url=base, api_key=key or "none", max_retries=0)
    model = client.models.list().data[0].id
    print("openai", openai.__version__, "model", model)
    check("the model by its name", client.models.retrieve(model).id == model)
    completions(client, model)
    chats(client, model)
    errors(client, model, base, key)
    asyncio.run(together(base, key, model))
    print(f"{len(FAILED)} failed")
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
