#!/usr/bin/env python3
"""Runs real programs bare and under `provost run`, and compares.

    cargo build --release && python3 tests/compat.py [--provost PATH] [--only NAME]

Every difference must have an explanation here or in compat_names.py: a consequence of the policy that docs/policy.md states. One without is an
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

import compat_names

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
        mkdir -p a/b && echo x > a/b/c && ln -s c a/b/l && ln a/b/c a/h && chmod 750 a/b && touch -d @1000000000 a/b/c a/b
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
    "go": (["go"], [], r"""
        export GOCACHE=$PWD/cache GOPATH=$PWD/path GOFLAGS=-mod=mod GOPROXY=off CGO_ENABLED=0
        printf 'module m\n' > go.mod; printf 'package m\n\nimport "testing"\n\nfunc TestIt(t *testing.T) { t.Log("here") }\n' > m_test.go
        go test -v | grep -c -e '--- PASS'"""),
    "chromium": ([compat_names.CHROMIUMS], ["--policy", "Chromium, headless"], f"""
        page=$(mktemp --suffix=.html); trap 'rm $page' EXIT
        echo '<p id=a>old</p><script>document.getElementById("a").textContent = "new " + 6 * 7</script>' > $page
        {compat_names.CHROMIUM} --headless --no-sandbox --dump-dom file://$page | grep 'new 42</p>'"""),
}

PYTHON = ["test_os", "test_pathlib", "test_subprocess", "test_shutil", "test_tempfile", "test_signal", "test_socket", "test_asyncio"]

# A network with two names in it.
WORLD = [sys.executable, os.path.join(HERE, "compat_world.py")]

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
    r"test_subprocess.*\.test_(user|group)\b": "in an ordinary user's user namespace nobody else exists: EINVAL instead of EPERM",
    r"(UDPLITE|SCTP|Vsock|VSOCK|BasicCAN|CAN|ISOTP|J1939|Alg|Qipcrtr|QIPCRTR|RDS|Bluetooth|Hyperv)": "socket families and protocols other than TCP, UDP and unix streams are refused",
    r"(testUnknownSocketFamily|test_unknown_socket_family|getaddrinfo|testHostnameRes|test_host_resolution|idna)": "no name server is reached from a private loopback",
    r"(Unix.*Dgram|unix_datagram|UnixDatagram|UnixDgram|UNIXDatagram|test_socketpair|SendrecvmsgUnix|path_dgram|datagram_endpoint\w*_unix)": "unix datagram sockets are refused: they can be pointed at anybody's",
    r"(OOB|oob|testRecvMsgTrunc.*Oob)": "out-of-band data is refused",
}


def run(words, directory):
    done = subprocess.run(words, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    return done.returncode, done.stdout, done.stderr


def missing(needs):
    """What is not here; of alternatives (`a|b`) one is enough."""
    return [need for need in needs if not any(map(shutil.which, need.split("|")))]


def documented_policy(title):
    """The example of that title in docs/policy.md."""
    page = open(os.path.join(HERE, "../docs/policy.md")).read()
    return re.search(rf"^### {re.escape(title)}\n.*?^```toml\n(.*?)^```", page, re.M | re.S)[1]


def shown(denials):
    told = [f"{denial['operation']} {' '.join(map(str, denial['target'].values()))}" for denial in denials]
    return "; ".join(told[:6] + [f"and {len(told) - 6} more"] * (len(told) > 6))


class Case:
    def __init__(self, provost):
        self.provost = provost
        self.rows = []

    def once(self, words, flags=None, world=()):
        """In a fresh directory, bare or with these flags: exit code, output, errors, denials."""
        base = tempfile.mkdtemp(prefix="provost-compat-", dir="/var/tmp")
        work, record = os.path.join(base, "work"), os.path.join(base, "record.json")
        os.mkdir(work)
        prefix = [] if flags is None else [self.provost, "run", "-q", "--record", record, *flags, "--"]
        code, out, err = run([*world, *prefix, *words], work)
        denials = [] if flags is None else json.load(open(record))["denials"]["first"]
        shutil.rmtree(base, ignore_errors=True)
        return code, out.replace(base, "BASE"), err.replace(base, "BASE"), denials

    def program(self, name, needs, flags, script):
        if missing(needs):
            return self.rows.append((name, "skipped", "not here: " + ", ".join(missing(needs))))
        words = ["sh", "-ec", script]
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as policy:
            if "--policy" in flags:
                policy.write(documented_policy(flags[1]))
                policy.flush()
                flags = ["--policy", policy.name]
            bare, confined = self.once(words), self.once(words, flags)
        if bare[0] != 0:
            return self.rows.append((name, "skipped", "fails bare: " + bare[2].strip()[-200:]))
        refused = shown(confined[3])
        if bare[:2] == confined[:2]:
            return self.rows.append((name, "same", f"though refused: {refused}" if refused else ""))
        detail = f"exit {confined[0]}, output {confined[1][-300:]!r} {confined[2][-300:]!r}; refused: {refused}"
        self.rows.append((name, "DIFFERENT", detail))

    def names(self, name, needs, build, ask, refused):
        """One name is allowed and one is not; both lead to the same place."""
        row = f"names: {name}"
        lacking = "not here: " + ", ".join(missing(needs)) if missing(needs) else self.no_world()
        if lacking:
            return self.rows.append((row, "skipped", lacking))
        with tempfile.TemporaryDirectory(prefix="provost-compat-", dir="/var/tmp") as made:
            os.chmod(made, 0o755)
            for file, text in compat_names.FILES.items():
                with open(os.path.join(made, file), "w") as source:
                    source.write(text)
            code, _, err = run(["sh", "-ec", f"MADE={made}; {build}"], made)
            if code != 0:
                return self.rows.append((row, "skipped", "cannot be built: " + err.strip()[-200:]))
            flags = ["--allow-net", "allowed.test:8080"]
            results = {}
            for host in ("allowed.test", "forbidden.test"):
                words = ["sh", "-ec", f"MADE={made}; NAME={host}; {ask}"]
                for held in (None, flags):
                    result = self.once(words, held, WORLD)
                    results[host, held is not None] = (result[0], result[1].replace(host, "NAME"), *result[2:])
        bare, confined = results["allowed.test", False], results["allowed.test", True]
        other = results["forbidden.test", True]
        if bare[0] != 0 or not reached(bare) or not reached(results["forbidden.test", False]):
            return self.rows.append((row, "skipped", f"fails bare: {bare[1][-200:]!r} {bare[2][-200:]!r}"))
        wrong = []
        if reached(other):
            wrong.append(f"reached the other name: {other[1]!r}")
        if refused:
            operation, port, why = refused
            if reached(confined) or not any(d["operation"] == operation and d["target"].get("port") == port for d in confined[3]):
                wrong.append(f"not refused as it should be: {confined[1:]}")
        elif bare[:2] != confined[:2]:
            wrong.append(f"exit {confined[0]}, output {confined[1][-300:]!r} {confined[2][-300:]!r}")
        if not refused and not any(d["operation"] == "resolve" and d["target"].get("host") == "forbidden.test" for d in other[3]):
            wrong.append(f"the other name is not in the record: {shown(other[3])}")
        if wrong:
            return self.rows.append((row, "DIFFERENT", "; ".join([*wrong, "refused: " + shown(confined[3])])))
        if refused:
            return self.rows.append((row, "explained", why))
        self.rows.append((row, "same", f"though refused: {shown(confined[3])}" if confined[3] else ""))

    def no_world(self):
        """Why there is no network of its own, if there is none."""
        code, _, err = run([*WORLD, "true"], "/")
        return f"no network of its own: {err.strip()[-200:]}" if code else ""

    def python(self, module):
        # In a directory that can be written, which some want.
        if run([sys.executable, "-c", f"import test.{module}"], tempfile.gettempdir())[0] != 0:
            return self.rows.append((f"python {module}", "skipped", "this Python has no tests"))
        words = [sys.executable, "-c", UNITTEST, f"test.{module}"]
        bare, confined = self.once(words), self.once(words, ["--net", "isolated"])
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


def reached(result):
    return "203.0.113.7" in result[1] or "public" in result[1]


def explanation(test):
    return next((why for pattern, why in EXPECTED.items() if re.search(pattern, test)), None)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--provost", default=os.path.join(HERE, "../target/release/provost"))
    arguments.add_argument("--only", help="one program, one module of Python's tests, or `names`")
    options = arguments.parse_args()
    case = Case(os.path.abspath(options.provost))
    for name, (needs, flags, script) in PROGRAMS.items():
        if options.only in (None, name):
            print(f"{name} …", file=sys.stderr)
            case.program(name, needs, flags, script)
    for name, client in compat_names.CLIENTS.items():
        if options.only in (None, name, "names"):
            print(f"names: {name} …", file=sys.stderr)
            case.names(name, *client)
    for module in PYTHON:
        if options.only in (None, module):
            print(f"python {module} …", file=sys.stderr)
            case.python(module)
    for name, word, detail in case.rows:
        print(f"{name:<28} {word:<10} {detail}")
    return int(any(word == "DIFFERENT" for _, word, _ in case.rows))


if __name__ == "__main__":
    sys.exit(main())
