"""The examples in all texts run, each alone, and hold what they assert; links lead somewhere."""

import ast
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

from absl.testing import absltest, parameterized

import jaxconvt

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest needs there

ROOT = pathlib.Path(__file__).parent.parent
README, PROJECT = ROOT / "README.md", ROOT / "pyproject.toml"
ADDRESSES = ROOT / ".ci" / "addresses.py"
PACKAGE = ROOT / "jaxconvt"
DESIGN = PACKAGE / "docs" / "design.md"
TEXTS = {
    "readme": README,
    "benchmarks": ROOT / "benchmarks" / "README.md",
    "contributing": ROOT / ".github" / "CONTRIBUTING.md",
    **{file.stem: file for file in sorted(DESIGN.parent.glob("*.md"))},
}


def examples(names=tuple(TEXTS)):
    """Yield the text and the line of each, so that an error is reported there, and its code."""
    for name in names:
        text = TEXTS[name].read_text()
        for block in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
            yield name, text[: block.start(1)].count("\n"), block[1]


def lacking(code):
    """Return the modules that it imports and that are not installed."""
    modules = re.findall(r"^(?:import|from) (\w+)", code, re.M)
    return {name for name in modules if not importlib.util.find_spec(name)}


def write(directory):
    """Write each as a file, for type checkers; lines have the numbers that they have here."""
    for name, at, code in examples():
        for module in lacking(code):
            code = re.sub(
                rf"^((import|from) {module}\b.*)", r"\1  # type: ignore", code, flags=re.M
            )
        pathlib.Path(directory, f"{name}_line_{at}.py").write_text(at * "\n" + code)


def relative_links(file):
    """Return the files that its links and pictures show."""
    return re.findall(r"\]\(([^)#:]+)[)#]", file.read_text())


class ReadmeTest(parameterized.TestCase):
    @parameterized.named_parameters(
        [(f"{name}_line_{at}", name, at, code) for name, at, code in examples()]
    )
    def test_alone(self, name, at, code):
        self.addCleanup(jaxconvt.uninstall)
        if lacking(code):  # other frameworks are for those who have them; the rest must run
            self.assertEqual(lacking(code), {"flax"})
            self.assertFalse(importlib.util.find_spec("onnx"))  # where CI has them all
            return
        exec(compile(at * "\n" + code, str(TEXTS[name]), "exec"), {})

    def test_size(self):
        self.assertGreater(len(list(examples(["readme"]))), 5)
        self.assertLessEqual(README.read_text().count("\n"), 220)

    @parameterized.parameters(*TEXTS)
    def test_lines(self, name):
        lines = TEXTS[name].read_text().splitlines()
        self.assertEmpty([line for line in lines if len(line) > 120 and line[0] != "|"])

    @parameterized.parameters(*TEXTS)
    def test_links(self, name):
        for target in relative_links(TEXTS[name]):
            self.assertTrue((TEXTS[name].parent / target).exists(), target)

    @parameterized.parameters(*TEXTS)
    def test_links_within(self, name):
        """Links to a heading."""
        file = TEXTS[name]
        for target, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", file.read_text()):
            text = (file.parent / target if target else file).read_text()
            titles = re.findall(r"^#+ (.*)$", text, re.M)
            anchors = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
            self.assertIn(heading, anchors)

    @parameterized.parameters(*TEXTS)
    def test_named_files(self, name):
        """A file of ours, and what is said to be in it."""
        text = TEXTS[name].read_text()
        for path in re.findall(r"`((?:benchmarks|jaxconvt|tests)/[\w/.-]+)`", text):
            self.assertTrue((ROOT / path).exists(), path)
        ours = [file for folder in ("jaxconvt", "tests") for file in (ROOT / folder).rglob("*.py")]
        for what, path in re.findall(r"`(\w+)`[^`\n]* in `([\w/]+\.py)`", text):
            (file,) = [file for file in ours if file.as_posix().endswith(f"/{path}")]
            self.assertRegex(file.read_text(), rf"\b{what}\b", path)

    def test_layers_of_modules(self):
        """The list in the design has every module, after all those that it imports at once."""
        section = DESIGN.read_text().partition("\n## Modules\n")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| [^|]+ \| (`_.*) \|$", section, re.M)
        listed = [f"jaxconvt.{name}" for name in re.findall(r"`([\w.]+)`", "".join(rows))]
        files = {
            ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
            for file in PACKAGE.rglob("*.py")
        }
        del files["jaxconvt"]
        self.assertCountEqual(listed, files)
        for at, module in enumerate(listed):
            for node in ast.parse(files[module].read_text()).body:
                if isinstance(node, ast.ImportFrom) and node.module.startswith("jaxconvt"):
                    inner = {f"{node.module}.{name.name}" for name in node.names} & {*files}
                    imported = inner or {node.module} & {*files}  # not the package's version
                    self.assertContainsSubset(imported, listed[:at], module)

    @unittest.skipUnless(ADDRESSES.exists(), "sdists are without it")
    def test_addresses(self):
        with tempfile.TemporaryDirectory() as directory:
            self.check_addresses(pathlib.Path(directory))

    def check_addresses(self, copy):
        (copy / ".ci").mkdir()
        for file in (README, PROJECT, ADDRESSES):
            shutil.copy(file, copy / file.relative_to(ROOT))
        address = "https://example.org/a/jaxconvt"
        command = [sys.executable, ".ci/addresses.py", address, "v1.2"]
        subprocess.run(command, cwd=copy, check=True)
        readme = (copy / README.name).read_text()
        self.assertEmpty(relative_links(copy / README.name))
        files, pictures = (
            re.findall(rf"]\({address}/{kind}/v1\.2/([^)#]+)", readme) for kind in ("blob", "raw")
        )
        self.assertCountEqual([*files, *pictures], relative_links(README))
        self.assertEqual(pictures, re.findall(r"^!.*]\((.*)\)$", README.read_text(), re.M))
        self.assertEqual(re.sub(rf"{address}/(blob|raw)/v1\.2/", "", readme), README.read_text())
        project = tomllib.loads((copy / PROJECT.name).read_text())
        urls = project["project"].pop("urls")
        self.assertEqual(urls.pop("Source"), address)
        self.assertEqual(urls["Changelog"], f"{address}/blob/v1.2/CHANGELOG.md")
        self.assertEqual(project, tomllib.loads(PROJECT.read_text()))
        # A second time there is nothing to do it to.
        self.assertNotEqual(subprocess.run(command, cwd=copy, capture_output=True).returncode, 0)


if __name__ == "__main__":
    absltest.main()
