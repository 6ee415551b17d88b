"""`make up`: the embedded stack in the foreground, until Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType

from deploy.embedded.stack import Stack
from deploy.embedded.supervisor import StartError
from layerdrift.sdk.calls import DEFAULT_URL


def main() -> int:
    """Runs the stack until SIGINT or SIGTERM; 0 after an orderly stop, 1 where it could not start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asked_to_stop = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if asked_to_stop.is_set():
            return
        asked_to_stop.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        with Stack(os.environ) as stack:
            print(f"ready {stack.url}", flush=True)
            if stack.url != DEFAULT_URL:
                print(f"for the command line: export LAYERDRIFT_URL={stack.url}", flush=True)
            roots = ", ".join(map(str, stack.settings.roots))
            print(f"file: URIs may refer to anything under {roots} (LAYERDRIFT_MODEL_ROOTS)", flush=True)
            asked_to_stop.wait()
    except KeyboardInterrupt:
        print("stopped", flush=True)
    except StartError as error:
        print(f"layerdrift could not start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
