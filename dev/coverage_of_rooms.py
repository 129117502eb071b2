"""Fails where a branch of the forked child's rooms is not covered: there, every line runs while a mail waits."""

import json
import subprocess
import sys
from pathlib import Path

ROOMS = [
    "greycheck/check.py",
    "greycheck/child.py",
    "greycheck/envelope.py",
    "greycheck/guard.py",
    "greycheck/log.py",
    "greycheck/normalise.py",
    "greycheck/policy.py",
    "greycheck/rules.py",
    "greycheck/settings.py",
    "greycheck/hooks/__init__.py",
    "greycheck/hooks/checkenv.py",
    "greycheck/hooks/rcptcheck.py",
    "greycheck/hooks/smtpextfork.py",
    "greycheck/hooks/spp.py",
    "greycheck/store/__init__.py",
    "greycheck/store/breaker.py",
    "greycheck/store/first_use.py",
    "greycheck/store/lean.py",
    "greycheck/store/lean_server.py",
    "greycheck/store/lean_sqlite.py",
    "greycheck/store/server.py",
    "greycheck/store/drivers/__init__.py",
    "greycheck/store/drivers/mysqldb.py",
    "greycheck/store/drivers/psycopg.py",
    "greycheck/store/drivers/psycopg2.py",
    "greycheck/store/drivers/pymysql.py",
]

report = Path(".coverage.json")
subprocess.run([sys.executable, "-m", "coverage", "json", "--quiet", "-o", report], check=True)
files = json.loads(report.read_text())["files"]
report.unlink()
missing = [
    f"{room}: lines {files[room]['missing_lines']}, branches {files[room]['missing_branches']}"
    for room in ROOMS
    if files[room]["missing_lines"] or files[room]["missing_branches"]
]
print("\n".join(missing) or f"all branches of the child's {len(ROOMS)} rooms are covered")
sys.exit(bool(missing))
