"""The examples of both READMEs run, each alone, and hold what they assert."""

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


def examples():
    """Return the code of each, and its line, so that an error is reported there."""
    text = README.read_text()
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
        yield text[: block.start(1)].count("\n"), block[1]


def lacking(code):
    """Return the modules that it imports and that are not installed."""
    modules = re.findall(r"^(?:import|from) (\w+)", code, re.M)
    return {name for name in modules if not importlib.util.find_spec(name)}


def write(directory):
    """Write each as a file, for type checkers; lines have the numbers that they have here."""
    for at, code in examples():
        for name in lacking(code):
            code = re.sub(rf"^((import|from) {name}\b.*)", r"\1  # type: ignore", code, flags=re.M)
        pathlib.Path(directory, f"line_{at}.py").write_text(at * "\n" + code)


def relative_links(file):
    """Return the files that its links and pictures show."""
    return re.findall(r"\]\(([^)#:]+)[)#]", file.read_text())


class ReadmeTest(parameterized.TestCase):
    @parameterized.named_parameters([(f"line_{at}", at, code) for at, code in examples()])
    def test_alone(self, at, code):
        self.addCleanup(jaxconvt.uninstall)
        if lacking(code):  # other frameworks are for those who have them; the rest must run
            self.assertEqual(lacking(code), {"flax"})
            self.assertFalse(importlib.util.find_spec("onnx"))  # where CI has them all
            return
        exec(compile(at * "\n" + code, str(README), "exec"), {})

    def test_size(self):
        self.assertGreater(len(list(examples())), 5)
        self.assertLessEqual(README.read_text().count("\n"), 220)

    def test_links(self):
        for file in (README, ROOT / "benchmarks" / "README.md"):
            for target in relative_links(file):
                self.assertTrue((file.parent / target).exists(), target)

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
