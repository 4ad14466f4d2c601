"""An agent's loop: runs commands one after the other in a sandbox, answers what they ask for by a rule, prints the records.

usage: agent.py [--socket PATH | --provost PROGRAM] [--cwd DIRECTORY] [--policy POLICY] [--allow-port PORT] [COMMAND]...

Each COMMAND is a line for `sh -c`; without any they are read from standard input, one a line. A connection that the policy
asks about is allowed to the ports given, and nothing else is.
"""

import argparse
import base64
import json
import sys

from provost import Provost, ProvostError


def run(provost, command, cwd, policy, ports):
    """Runs one command to its end; its record."""
    process = provost.start(["sh", "-c", command], cwd=cwd, policy=policy, timeout_ms=600_000, labels={"agent": "example"})
    for event in process.events():
        if event["type"] == "output":
            target = sys.stdout if event["stream"] == "stdout" else sys.stderr
            target.buffer.write(base64.b64decode(event["data"]))
            target.flush()
        elif event["type"] == "approval_requested":
            attempt = event["attempt"]
            allowed = attempt["class"] == "network" and attempt["target"].get("port") in ports
            decided = process.decide(event["approval"], allow=allowed, by="agent.py")
            shown = {"asked": attempt["target"], "rule": attempt.get("allow"), "allowed": allowed}
            print(json.dumps(shown if decided else {**shown, "allowed": "somebody else decided"}), file=sys.stderr)
        elif event["type"] == "terminal":
            return event["record"]
    raise AssertionError("events end with the terminal one")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket", help="a daemon's socket")
    where.add_argument("--provost", default="provost", help="the program to run a daemon of its own with")
    parser.add_argument("--cwd", default=".")
    parser.add_argument("--policy", default="workspace-write")
    parser.add_argument("--allow-port", type=int, action="append", default=[])
    parser.add_argument("commands", nargs="*", metavar="COMMAND")
    args = parser.parse_args()
    commands = args.commands or [line.strip() for line in sys.stdin if line.strip()]
    failed = 0
    with (Provost.connect(args.socket) if args.socket else Provost.spawn(args.provost)) as provost:
        for command in commands:
            try:
                record = run(provost, command, args.cwd, args.policy, args.allow_port)
            except ProvostError as error:
                print(json.dumps({"command": command, "refused": str(error), "hint": error.hint}))
                failed += 1
                continue
            shown = {"command": command, **{key: record[key] for key in ("process", "outcome", "exit_code", "denied")}}
            shown["denials"] = [
                {key: denial.get(key) for key in ("class", "operation", "target", "allow")}
                for denial in record["denials"]["first"]
            ]
            shown["approvals"] = record["approvals"]
            print(json.dumps(shown))
            failed += not record["succeeded"]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
