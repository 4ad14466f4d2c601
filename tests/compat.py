#!/usr/bin/env python3
"""Runs real programs bare and under `provost run`, and compares.

    cargo build --release && python3 tests/compat.py [--provost PATH] [--only NAME]

Every difference must have an explanation below: a consequence of the policy that docs/policy.md states. One without is an
error (exit code 1). Takes some minutes; what a machine lacks is skipped and named.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
GIT = "git -c user.name=a -c user.email=a@example.invalid -c init.defaultBranch=main -c protocol.file.allow=always"

# Name: what must be there, flags of `provost run`, a shell script.
PROGRAMS = {
    "git": (["git"], [], f"""
        {GIT} init -q repo && cd repo && echo a > a && {GIT} add a && {GIT} commit -qm one && cd ..
        {GIT} clone -q repo copy && cd copy && echo b > b && {GIT} add b && {GIT} commit -qm two
        {GIT} checkout -q -b side HEAD~1 && echo c > c && {GIT} add c && {GIT} commit -qm three
        {GIT} rebase -q main && {GIT} log --format=%s && {GIT} status --short && {GIT} gc -q && {GIT} fsck"""),
    "make": (["make", "cc"], [], r"""
        printf 'int f(void);int main(void){return f();}' > m.c; printf 'int f(void){return 0;}' > f.c
        printf 'm: m.o f.o\n\tcc -o m m.o f.o\n' > Makefile; make -j4 -s && ./m"""),
    "tar": (["tar"], [], """
        mkdir -p a/b && echo x > a/b/c && ln -s c a/b/l && ln a/b/c a/h && chmod 750 a/b && touch -d @1000000000 a/b/c
        tar cpf t.tar a && mkdir o && tar xpf t.tar -C o && stat -c '%n %a %Y %h' o/a/b/c o/a/b && readlink o/a/b/l"""),
    "rsync": (["rsync"], [], "mkdir -p a/b && echo x > a/b/c && rsync -aHAX a/ b/ && diff -r a b && rsync -aHAX --checksum a/ b/"),
    "sqlite3": (["sqlite3"], [], """
        sqlite3 db 'pragma journal_mode=wal; create table t(a); insert into t values (1),(2);'
        sqlite3 db 'select sum(a) from t; vacuum; pragma integrity_check;'"""),
    "pip": (["pip"], [], r"""
        python3 - <<'END'
import zipfile
with zipfile.ZipFile('q-1-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('q/__init__.py', 'x = 7\n')
    wheel.writestr('q-1.dist-info/METADATA', 'Metadata-Version: 2.1\nName: q\nVersion: 1\n')
    wheel.writestr('q-1.dist-info/WHEEL', 'Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    wheel.writestr('q-1.dist-info/RECORD', '')
END
        pip install -q --no-index --no-deps --no-cache-dir --disable-pip-version-check --target out ./q-1-py3-none-any.whl
        PYTHONPATH=out python3 -c 'import q; print(q.x)'"""),
    "npm": (["npm", "node"], [], r"""
        mkdir lib app && printf '{"name":"lib","version":"1.0.0","main":"i.js"}' > lib/package.json && echo 'module.exports = 7' > lib/i.js
        cd app && printf '{"name":"app","version":"1.0.0","dependencies":{"lib":"file:../lib"}}' > package.json
        npm install --silent --offline --no-audit --no-fund --cache ../cache && npm ci --silent --offline --no-audit --no-fund --cache ../cache
        node -e 'console.log(require("lib")); require("child_process").spawnSync("echo", ["child"], {stdio: "inherit"})'"""),
    "cargo": (["cargo"], [], r"""
        cargo init -q --vcs none --name crate_of_our_own . && printf '#[test] fn t() { assert_eq!(1 + 1, 2) }\nfn main() {}\n' > src/main.rs
        cargo test -q --offline 2>/dev/null | grep -c '1 passed'"""),
}

PYTHON = ["test_os", "test_pathlib", "test_subprocess", "test_shutil", "test_tempfile", "test_signal", "test_socket", "test_asyncio"]

# Runs a module's tests, but for those that hang bare where a virtual machine's host does not answer.
UNITTEST = """
import sys, unittest
def each(suite):
    for test in suite:
        yield from each(test) if isinstance(test, unittest.TestSuite) else [test]
suite = unittest.defaultTestLoader.loadTestsFromName(sys.argv[1])
suite = unittest.TestSuite(test for test in each(suite) if 'VSOCK' not in test.id())
sys.exit(not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful())
"""

# Tests of Python's that do not pass under the policy, and why.
EXPECTED = {
    r"test_os.*(chown_with_root|chown_without_permission)": "root's programs have no capabilities",
    r"test_os.*(setns|unshare)": "namespaces are refused",
    r"(UDPLITE|SCTP|Vsock|VSOCK|BasicCAN|CAN|ISOTP|J1939|Alg|Qipcrtr|QIPCRTR|RDS|Bluetooth|Hyperv)": "socket families and protocols other than TCP, UDP and unix streams are refused",
    r"(testUnknownSocketFamily|test_unknown_socket_family|getaddrinfo|testHostnameRes|test_host_resolution|idna)": "no name server is reached from a private loopback",
    r"(Unix.*Dgram|unix_datagram|UnixDatagram|UnixDgram|UNIXDatagram|test_socketpair|SendrecvmsgUnix|path_dgram|datagram_endpoint\w*_unix)": "unix datagram sockets are refused: they can be pointed at anybody's",
    r"(OOB|oob|testRecvMsgTrunc.*Oob)": "out-of-band data is refused",
}


def run(words, directory, environment=None):
    done = subprocess.run(words, cwd=directory, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    return done.returncode, done.stdout, done.stderr


class Case:
    def __init__(self, provost):
        self.provost = provost
        self.rows = []

    def both(self, flags, words):
        """The same in two fresh directories of the same name, one after the other."""
        results = []
        for confined in (False, True):
            base = tempfile.mkdtemp(prefix="provost-compat-", dir="/var/tmp")
            work = os.path.join(base, "work")
            os.mkdir(work)
            record = os.path.join(base, "record.json")
            prefix = [self.provost, "run", "-q", "--record", record, *flags, "--"] if confined else []
            code, out, err = run(prefix + words, work)
            denials = json.load(open(record))["denials"] if confined else None
            results.append((code, out.replace(base, "BASE"), err.replace(base, "BASE"), denials))
            shutil.rmtree(base, ignore_errors=True)
        return results

    def program(self, name, needs, flags, script):
        missing = [need for need in needs if not shutil.which(need)]
        if missing:
            return self.rows.append((name, "skipped", "not here: " + ", ".join(missing)))
        bare, confined = self.both(flags, ["sh", "-ec", script])
        if bare[0] != 0:
            return self.rows.append((name, "skipped", "fails bare: " + bare[2].strip()[-200:]))
        refused = "; ".join(
            f"{denial['operation']} {' '.join(map(str, denial['target'].values()))}" for denial in confined[3]["first"]
        )
        if bare[:2] == confined[:2]:
            return self.rows.append((name, "same", f"though refused: {refused}" if refused else ""))
        detail = f"exit {confined[0]}, output {confined[1][-300:]!r} {confined[2][-300:]!r}; refused: {refused}"
        self.rows.append((name, "DIFFERENT", detail))

    def python(self, module):
        if run([sys.executable, "-c", f"import test.{module}"], "/")[0] != 0:
            return self.rows.append((f"python {module}", "skipped", "this Python has no tests"))
        words = [sys.executable, "-c", UNITTEST, f"test.{module}"]
        bare, confined = self.both(["--net", "isolated"], words)
        results = [failures(result[2]) for result in (bare, confined)]
        news = sorted(results[1] - results[0])
        unexplained = [test for test in news if not explanation(test)]
        detail = f"{len(news)} more fail, all explained" if news else ""
        for why in sorted({explanation(test) for test in news if explanation(test)}):
            count = sum(explanation(test) == why for test in news)
            detail += f"; {count}: {why}"
        if unexplained:
            detail = f"unexplained: {', '.join(unexplained[:20])}"
        word = "DIFFERENT" if unexplained else "same" if not news else "explained"
        self.rows.append((f"python {module}", word, detail))


def failures(text):
    """The tests that failed or could not be set up, with their classes."""
    return {" ".join(match.split()) for match in re.findall(r"^(?:ERROR|FAIL): (.*)$", text, re.M)}


def explanation(test):
    return next((why for pattern, why in EXPECTED.items() if re.search(pattern, test)), None)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--provost", default=os.path.join(HERE, "../target/release/provost"))
    arguments.add_argument("--only", help="one program, or one module of Python's tests")
    options = arguments.parse_args()
    case = Case(os.path.abspath(options.provost))
    for name, (needs, flags, script) in PROGRAMS.items():
        if options.only in (None, name):
            print(f"{name} …", file=sys.stderr)
            case.program(name, needs, flags, script)
    for module in PYTHON:
        if options.only in (None, module):
            print(f"python {module} …", file=sys.stderr)
            case.python(module)
    for name, word, detail in case.rows:
        print(f"{name:<24} {word:<10} {detail}")
    return int(any(word == "DIFFERENT" for _, word, _ in case.rows))


if __name__ == "__main__":
    sys.exit(main())
