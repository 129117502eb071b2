#!/opt/greycheck/bin/python -I
"""Answers the links of `greycheck digest --links`: a CGI program (RFC 3875) for any web server.

The web server runs it as the store's owner, with the interpreter of the installation in the first
line. GET shows a page with a form; only POST, which that form sends, lets the mail in. The token is
handed to `greycheck release --token` on standard input, and is in nobody's arguments.
docs/digest.rst says how web servers are set up, and what may do who has a link.
"""

import base64
import hashlib
import html
import json
import os
import re
import signal
import subprocess
import sys
import time

# The longest body that is read, in bytes, and how long all may take, in seconds.
BODY = 256
SECONDS = 30

TOKEN = "[A-Za-z0-9_-]{64}"

# Of the web server's environment, what the command gets besides its settings. What a client says
# begins with HTTP_, and the token is in QUERY_STRING.
HANDED_ON = ("HOME", "PATH", "TZ", "XDG_STATE_HOME")

STYLE = """
:root { color-scheme: light dark; }
body { font: 1.125rem/1.5 sans-serif; max-width: 36rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; }
p, h1 { overflow-wrap: anywhere; }
button { font: inherit; padding: .5rem 1.25rem; }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""

FORM = """<form method="post" action="?">
<input type="hidden" name="token" value="{token}">
<button type="submit">Let this mail in</button>
</form>"""

HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = f"""Content-Type: text/html; charset=utf-8
Cache-Control: no-store
Content-Security-Policy: default-src 'none'; style-src 'sha256-{HASH}'; form-action 'self'; \
base-uri 'none'; frame-ancestors 'none'
Referrer-Policy: no-referrer
X-Content-Type-Options: nosniff
X-Frame-Options: DENY
X-Robots-Tag: noindex, nofollow
"""

# What is said where there is nothing to let in: status, title and text.
REFUSALS = {
    "invalid": ("404 Not Found", "This link is not valid", "Copy all of it from the mail."),
    "expired": ("410 Gone", "This link has expired", "The mail does not wait any more."),
    "used": (
        "410 Gone",
        "This link counts no more",
        "It was used already, or the mail does not wait any more.",
    ),
    "method": ("405 Method Not Allowed", "This cannot be done", "Open the link in a browser."),
    "body": ("400 Bad Request", "This is no answer to the form", "Open the link again."),
    "large": ("413 Content Too Large", "This is no answer to the form", "Open the link again."),
    "fault": (
        "503 Service Unavailable",
        "That did not work",
        "Nothing was changed, or nobody knows. Open the link again later.",
    ),
}


def answer(status, title, paragraphs, form="", more=""):
    """Writes the whole answer and ends. TITLE and PARAGRAPHS are text, and are escaped here."""
    body = "\n".join(f"<p>{html.escape(text)}</p>" for text in paragraphs)
    text = PAGE.format(title=html.escape(title), style=STYLE, body=f"{body}\n{form}")
    head = f"Status: {status}\n{HEADERS}{more}\n".replace("\n", "\r\n")
    if os.environ.get("REQUEST_METHOD") == "HEAD":
        text = ""
    sys.stdout.buffer.write((head + text).encode("utf-8", "replace"))
    sys.stdout.buffer.flush()
    os._exit(0)


def refuse(why):
    """Answers that there is nothing to let in, WHY is a key of REFUSALS."""
    status, title, text = REFUSALS[why]
    answer(status, title, [text], more="Allow: GET, HEAD, POST\n" if why == "method" else "")


def token_of_body():
    """Returns the token that the form sends."""
    length = os.environ.get("CONTENT_LENGTH", "")
    if not re.fullmatch("[0-9]{1,18}", length):
        refuse("body")
    if int(length) > BODY:
        refuse("large")
    body = sys.stdin.buffer.read(int(length)).decode("ascii", "replace")
    found = re.fullmatch(f"token=({TOKEN})", body)
    return found[1] if found else refuse("invalid")


def told(token, *options):
    """Returns what `greycheck release --token` says of TOKEN, as from its JSON."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if name in HANDED_ON or name.startswith("GREYCHECK")
    }
    ran = subprocess.run(
        [sys.executable, "-I", "-m", "greycheck", "release", "--token", "--json", *options],
        input=token.encode(),
        stdout=subprocess.PIPE,
        env=environ,
        timeout=SECONDS,
        check=False,
    )
    return json.loads(ran.stdout)


def main():
    """Answers one request."""
    signal.alarm(2 * SECONDS)
    method = os.environ.get("REQUEST_METHOD", "")
    if method == "POST":
        said = told(token_of_body())
    elif method in ("GET", "HEAD"):
        query = os.environ.get("QUERY_STRING", "")
        if not re.fullmatch(TOKEN, query):
            refuse("invalid")
        said = told(query, "--dry-run")
    else:
        refuse("method")
    if said["state"] in REFUSALS:
        refuse(said["state"])
    sender = said["sender"] or "<> (a delivery report)"
    mail = f"From {sender} to {said['recipient']}."
    until = time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(said["until"]))
    if said["state"] == "waits":
        first = time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(said["first_attempt"]))
        came = f"It was first tried {first}, and does not wait for longer than {until}."
        answer("200 OK", "Let this mail in?", [mail, came], FORM.format(token=query))
    text = f"It comes in at its next attempt, if that is made by {until}. This link is used up."
    answer("200 OK", "The mail may come in", [mail, text])


try:
    main()
except Exception as error:  # whatever it is: who asks is told nothing of it
    print(f"greycheck-release.cgi: {type(error).__name__}: {error}", file=sys.stderr)
    refuse("fault")
