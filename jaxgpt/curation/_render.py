"""Writes Python's own documentation as web pages. python_docs.py runs this file as a program; nothing imports it.

    python _render.py REQUEST.json PAGES.jsonl

It stands alone on the standard library, because it runs in a fresh interpreter: importing a hundred modules must not
touch the process that trains. Each line is {"kind": "pydoc" | "topics" | "docstrings", "name", "html"} or {"kind":
"skipped", "name", "reason"}. The same interpreter and packages give the same bytes: values of this machine and this
process (addresses, folders, constants) are left out.
"""

import ast
import html
import importlib
import importlib.util
import json
import os
import pydoc
import re
import sys
import warnings


def refuse_network(event, arguments):
    """An audit hook: the documentation is on this machine, so nothing has a reason to leave it."""
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        raise RuntimeError(f"{event} is not allowed while documentation is rendered")


def page(title, body):
    """A whole HTML page."""
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
            f"</head>\n<body>\n<main>\n<h1>{html.escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n")


UNDERLINE = re.compile(r"([*=~^#+-])\1{2,}")
# A line whose place on the page matters: indented, of a list, of a session, of a table.
LAID_OUT = re.compile(r"^\s|^[*+-] |^\d+[.)] |^&gt;&gt;&gt;|\S {3,}\S|^[=-]{3,}")


def blocks(text):
    """HTML for an escaped text in the manner of docstrings: headings, paragraphs, and code or tables as they are."""
    parts = []  # (tag, content)
    for block in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")):
        lines = block.split("\n")
        if len(lines) > 1 and UNDERLINE.fullmatch(lines[1].strip()) and not UNDERLINE.fullmatch(lines[0].strip()):
            parts.append(("h3", lines[0].strip()))
            lines = lines[2:]
        if not "".join(lines).strip():
            continue
        tag, content = "pre" if any(map(LAID_OUT.search, lines)) else "p", "\n".join(lines)
        if tag == "pre" and parts and parts[-1][0] == "pre":
            content = f"{parts.pop()[1]}\n\n{content}"
        parts.append((tag, content))
    return "\n".join(f"<{tag}>{content}</{tag}>" for tag, content in parts)


class Pages(pydoc.HTMLDoc):
    """pydoc's pages with headings and paragraphs for its tables, without what belongs to the machine: file names and
    the values of constants."""

    def page(self, title, contents):
        # What pydoc marks as code is text laid out by hand: a docstring.
        body = re.sub(r'(<p>|<dd>)?<span class="code">(.*?)(?:<br>&nbsp;)?</span>(?(1)</(?:p|dd)>)',
                      lambda found: blocks(found[2]), contents, flags=re.DOTALL)
        within = rf'<a (?:name="[^"]*"|href="(?:{re.escape(title)}\.html)?#[^"]*")>(.*?)</a>'
        return page(title, re.sub(r"</?(?:strong|span)\b[^>]*>", "", re.sub(within, r"\1", body, flags=re.DOTALL)))

    def heading(self, title, extras=""):
        return ""

    def section(self, title, cls, contents, width=6, prelude="", marginalia=None, gap=""):
        return f"<h2>{title}</h2>\n{prelude}\n{contents}\n"

    def bigsection(self, title, *arguments):
        return "" if title == "Data" else self.section(title, *arguments)

    def multicolumn(self, items, format):
        return f"<p>{', '.join(map(format, items))}</p>"

    def preformat(self, text):
        return self.escape(text.expandtabs())

    def filelink(self, url, path):
        return ""


def pages(modules):
    """The HTML page that pydoc shows for each module."""
    renderer = Pages()
    folders = {os.path.abspath(path) for path in (*sys.path, sys.prefix, sys.base_prefix)} - {"/", "/usr", "/usr/local"}
    folder = re.compile("|".join(re.escape(path) for path in sorted(folders, key=len, reverse=True)))
    for name in modules:
        try:
            module = importlib.import_module(name)
            content = renderer.page(name, renderer.docmodule(module))
        except BaseException as error:  # a module may even call sys.exit
            yield {"kind": "skipped", "name": name, "reason": f"{type(error).__name__}: {error}"}
            continue
        content = re.sub(r"(?: |&nbsp;)at(?: |&nbsp;)0x[0-9a-fA-F]+", "", content)
        yield {"kind": "pydoc", "name": name, "html": folder.sub("", content)}


def topics():
    """The language reference, cut into the topics that `help()` knows."""
    from pydoc_data.topics import topics as texts

    for name in sorted(texts):
        yield {"kind": "topics", "name": name, "html": page(name, blocks(html.escape(texts[name], quote=False)))}


def docstrings(packages):
    """What each file of a package says of itself, read from its source without importing it."""
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            yield {"kind": "skipped", "name": package, "reason": "not installed"}
            continue
        for root in sorted(spec.submodule_search_locations):
            for path in source_files(root):
                name = ".".join([package, *os.path.relpath(path, root)[:-3].split(os.sep)]).removesuffix(".__init__")
                try:
                    with open(path, "rb") as file:
                        body = describe(ast.parse(file.read()))
                except (OSError, SyntaxError, ValueError, RecursionError) as error:
                    yield {"kind": "skipped", "name": name, "reason": f"{type(error).__name__}: {error}"}
                    continue
                if body:
                    yield {"kind": "docstrings", "name": name, "html": page(name, body)}


def source_files(root):
    """The Python files under a folder in a fixed order, tests and vendored copies left out."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - {"test", "tests", "testing", "_vendor", "__pycache__"})
        for name in sorted(files):
            if name.endswith(".py") and not name.endswith(("_test.py", "_pb2.py")) and not name.startswith("test_"):
                yield os.path.join(folder, name)


def describe(tree):
    """A module's docstrings as HTML: its own, then each class's and function's under its signature."""
    parts = [blocks(html.escape(ast.get_docstring(tree) or "", quote=False))]

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                text = ast.get_docstring(child)
                if text:
                    parts.append(f"<h2>{signature(child, prefix)}</h2>\n{blocks(html.escape(text, quote=False))}")
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, (ast.If, ast.Try, ast.With)):
                visit(child, prefix)

    visit(tree, "")
    return "\n".join(filter(None, parts))


def signature(node, prefix):
    """`class Name` or `name(arguments)`, without types and defaults."""
    if isinstance(node, ast.ClassDef):
        return f"class {prefix}{node.name}"
    arguments = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    if node.args.vararg:
        arguments.append("*" + node.args.vararg.arg)
    elif node.args.kwonlyargs:
        arguments.append("*")
    arguments += [argument.arg for argument in node.args.kwonlyargs]
    if node.args.kwarg:
        arguments.append("**" + node.args.kwarg.arg)
    return f"{prefix}{node.name}({', '.join(arguments)})"


def main(request_path, output_path):
    """Renders what the request asks for into one file."""
    sys.addaudithook(refuse_network)
    warnings.simplefilter("ignore")
    with open(request_path, encoding="utf-8") as file:
        request = json.load(file)
    kinds = (topics() if request["topics"] else (), pages(request["modules"]), docstrings(request["packages"]))
    with open(output_path, "w", encoding="utf-8") as file:
        for records in kinds:
            for record in records:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
