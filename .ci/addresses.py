"""Puts the project's address into README.md and pyproject.toml, for a release.

    python .ci/addresses.py https://example.org/owner/jaxconvt v1.2.3

The checkout names no address, and so is right wherever it is kept. The page of a package index
needs one: links that are relative there lead nowhere. The second argument is the tag or commit
that files are linked at.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent
LINK = re.compile(r"(!?)\[([^][]*)\]\(([^)\s]+)\)")


def absolute(text: str, address: str, at: str) -> str:
    """Markdown whose links and pictures have whole addresses; those that have them stay."""

    def whole(link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        if re.match(r"#|\w+:", target):
            return link[0]
        return f"{picture}[{words}]({address}/{'raw' if picture else 'blob'}/{at}/{target})"

    return LINK.sub(whole, text)


def main(address: str, at: str) -> None:
    address = address.rstrip("/")
    if not re.fullmatch(r"https://[\w.-]+(/[\w.-]+)+", address):
        raise SystemExit(f"The address must be such as https://host/owner/name, got {address!r}.")
    readme, project = ROOT / "README.md", ROOT / "pyproject.toml"
    metadata = project.read_text()
    if "[project.urls]" in metadata:
        raise SystemExit(f"{project} has [project.urls] already.")
    readme.write_text(absolute(readme.read_text(), address, at))
    project.write_text(
        f"{metadata}\n[project.urls]\n"
        f'Source = "{address}"\n'
        f'Changelog = "{address}/blob/{at}/CHANGELOG.md"\n'
        f'Issues = "{address}/issues"\n'
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
