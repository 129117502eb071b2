"""The digest as one page of HTML that needs nothing else: no script, no font, no picture.

Everything that is not written here is escaped by markupsafe: ``Markup.format`` takes text for text.
The page is ASCII, so that no transport changes it.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from markupsafe import Markup

from greycheck.digest.signs import Sign
from greycheck.statistics.text import plain

STYLE = """
:root { color-scheme: light dark; --line: #767676; --soft: #595959; --back: #f2f2f2; }
@media (prefers-color-scheme: dark) {
  :root { --line: #8a8a8a; --soft: #b5b5b5; --back: #262626; }
}
body { font: 1rem/1.5 sans-serif; max-width: 48rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0; }
h1, h2, h3, p, li, a { overflow-wrap: anywhere; }
ol.mails { list-style: none; padding: 0; }
ol.mails > li { border: 1px solid var(--line); border-radius: .25rem; padding: .75rem 1rem;
  margin: 1rem 0; break-inside: avoid; }
p { margin: .5rem 0; }
.soft { color: var(--soft); }
.signs { margin: .5rem 0; padding-left: 1.25rem; }
pre { background: var(--back); padding: .5rem; margin: .25rem 0; white-space: pre-wrap;
  overflow-wrap: anywhere; }
code { font-family: monospace; }
@media print { body { max-width: none; padding: 0; } pre { border: 1px solid var(--line); } }
"""

PAGE = Markup("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'sha256-{hash}'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{about}
</header>
<main>
{domains}
</main>
</body>
</html>""")

ABOUT = Markup("<p{kind}>{text}</p>")

DOMAIN = Markup("""<section aria-labelledby="domain-{number}">
<h2 id="domain-{number}">{domain}</h2>
<ol class="mails" role="list">
{mails}
</ol>
{more}</section>""")

MAIL = Markup("""<li>
<h3>From <bdi>{sender}</bdi> to <bdi>{recipient}</bdi></h3>
<p class="soft">{facts}</p>
<ul class="signs">
{signs}
</ul>
{ways}
</li>""")

SIGN = Markup('<li>{words} <span class="soft">({weight})</span></li>')
COMMAND = Markup("<p>{label}:</p>\n<pre><code>{command}</code></pre>")
LINK = Markup('<p><a href="{url}" rel="noreferrer">{label}</a></p>')


@dataclass(frozen=True)
class Mail:
    """A mail as all forms of the digest show it.

    FACTS is a sentence; COMMANDS are labels with command lines; LINK is a URL, or empty.
    """

    sender: str
    recipient: str
    facts: str
    signs: Sequence[Sign]
    commands: Sequence[tuple[str, str]]
    link: str


def page(
    title: str, about: Sequence[str], domains: Sequence[tuple[str, Sequence[Mail], str]]
) -> str:
    """Returns the page with TITLE, the sentences ABOUT, and DOMAINS.

    Each domain has its name, its mails, and a sentence about more of them, or an empty text.
    """
    text = PAGE.format(
        hash=hash_of(STYLE),
        style=Markup(STYLE),
        title=title,
        about=Markup("\n").join(
            ABOUT.format(kind=Markup(' class="soft"') if number else "", text=each)
            for number, each in enumerate(about)
        ),
        domains=Markup("\n").join(
            DOMAIN.format(
                number=number,
                domain=domain,
                mails=Markup("\n").join(map(_mail, mails)),
                more=ABOUT.format(kind=Markup(' class="soft"'), text=more) if more else "",
            )
            for number, (domain, mails, more) in enumerate(domains, 1)
        ),
    )
    # Nothing that a row has moves, hides or turns what is beside it.
    shown = "\n".join(map(plain, str(text).split("\n")))
    return shown.encode("ascii", "xmlcharrefreplace").decode()


def hash_of(style: str) -> str:
    """Returns the hash of STYLE as a Content-Security-Policy has it."""
    return b64encode(sha256(style.encode()).digest()).decode()


def _mail(mail: Mail) -> Markup:
    ways = [COMMAND.format(label=label, command=command) for label, command in mail.commands]
    if mail.link:
        ways.insert(0, LINK.format(url=mail.link, label=f"Let in the mail of {mail.sender}"))
    return MAIL.format(
        sender=mail.sender,
        recipient=mail.recipient,
        facts=mail.facts,
        signs=Markup("\n").join(
            SIGN.format(words=sign.words, weight=f"{sign.weight:+}") for sign in mail.signs
        ),
        ways=Markup("\n").join(ways),
    )
