"""A light steady load: feeds and events by turns, through each node in turn. One line of JSON a request."""

import argparse
import asyncio
import json
import random
import time
import uuid
from pathlib import Path
from typing import Any

import aiohttp


async def ask(http: aiohttp.ClientSession, target: str, path: str, body: dict[str, Any]) -> tuple[str, Any]:
    """`(status, answer)`; the status of what never came is the kind of error."""
    try:
        async with http.post(f"http://{target}:8000/v1/{path}", json=body) as answer:
            return str(answer.status), await answer.json(content_type=None)
    except (TimeoutError, aiohttp.ClientError, ValueError) as error:
        return type(error).__name__, None


async def one(http: aiohttp.ClientSession, number: int, options: argparse.Namespace) -> dict[str, Any]:
    """One request: an event each second time."""
    targets = options.targets.split(",")
    target, user, began = targets[(number // 2) % len(targets)], f"load-{random.randrange(40)}", time.time()
    row: dict[str, Any] = {"at": began, "target": target}
    if number % 2:
        row |= {"kind": "event", "event_id": uuid.uuid4().hex}
        event = {"event_id": row["event_id"], "user_id": user, "item_id": random.choice(options.items.split(","))}
        event |= {"action": options.action, "timestamp_ms": int(began * 1000)}
        row["status"], answer = await ask(http, target, "events", event)
        if row["status"] == "200" and answer.get("rejected"):
            row["status"] = "rejected"
    else:
        row["kind"] = "feed"
        row["status"], answer = await ask(http, target, "recommendations", {"user_id": user, "num_results": 10})
        row["degraded"] = bool(answer and answer.get("degraded"))
        row["model"] = answer and answer.get("model_version")
    return row | {"s": round(time.time() - began, 3)}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--targets", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--items", required=True)
    parser.add_argument("--action", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    timeout = aiohttp.ClientTimeout(total=10, connect=3)
    tasks, began, number = set(), time.monotonic(), 0
    with options.out.open("w", buffering=1) as out:
        async with aiohttp.ClientSession(headers={"X-API-Key": options.key}, timeout=timeout) as http:

            async def work(number: int) -> None:
                out.write(json.dumps(await one(http, number, options)) + "\n")

            while time.monotonic() - began < options.seconds:
                tasks.add(asyncio.create_task(work(number)))
                number += 1
                await asyncio.sleep(max(0.0, began + number / options.rate - time.monotonic()))
            await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main())
