"""Writes Python's own documentation as JSON lines. python_docs.py runs this file as a program; nothing imports it.

    python _render.py REQUEST.json PAGES.jsonl

It stands alone on the standard library, because it runs in a fresh interpreter: importing a hundred modules must not
touch the process that trains. Each line is {"kind": "page" | "topic" | "docstrings", "name", "content"} or {"kind":
"skipped", "name", "reason"}. The same interpreter and packages give the same bytes: values of this machine and this
process (addresses, folders, constants) are left out.
"""

import ast
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


class Pages(pydoc.HTMLDoc):
    """pydoc's pages without what belongs to the machine: file names and the values of constants."""

    def filelink(self, url, path):
        return ""

    def bigsection(self, title, *arguments):
        return "" if title == "Data" else super().bigsection(title, *arguments)


def pages(modules):
    """The HTML page that pydoc shows for each module."""
    renderer = Pages()
    folders = {os.path.abspath(path) for path in (*sys.path, sys.prefix, sys.base_prefix)} - {"/", "/usr", "/usr/local"}
    folder = re.compile("|".join(re.escape(path) for path in sorted(folders, key=len, reverse=True)))
    for name in modules:
        try:
            module = importlib.import_module(name)
            page = renderer.page(name, renderer.docmodule(module))
        except BaseException as error:  # a module may even call sys.exit
            yield {"kind": "skipped", "name": name, "reason": f"{type(error).__name__}: {error}"}
            continue
        page = re.sub(r"(?: |&nbsp;)at(?: |&nbsp;)0x[0-9a-fA-F]+", "", page)
        yield {"kind": "page", "name": name, "content": folder.sub("", page)}


def topics():
    """The language reference, cut into the topics that `help()` knows."""
    from pydoc_data.topics import topics as texts

    for name in sorted(texts):
        yield {"kind": "topic", "name": name, "content": texts[name]}


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
                        content = describe(name, ast.parse(file.read()))
                except (OSError, SyntaxError, ValueError, RecursionError) as error:
                    yield {"kind": "skipped", "name": name, "reason": f"{type(error).__name__}: {error}"}
                    continue
                if content:
                    yield {"kind": "docstrings", "name": name, "content": content}


def source_files(root):
    """The Python files under a folder in a fixed order, tests and vendored copies left out."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - {"test", "tests", "testing", "_vendor", "__pycache__"})
        for name in sorted(files):
            if name.endswith(".py") and not name.endswith(("_test.py", "_pb2.py")) and not name.startswith("test_"):
                yield os.path.join(folder, name)


def describe(name, tree):
    """A module's docstrings as one text: its own, then each class's and function's under its signature."""
    parts = [f"{name}\n\n{ast.get_docstring(tree)}"] if ast.get_docstring(tree) else []

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                text = ast.get_docstring(child)
                if text:
                    parts.append(f"{signature(child, prefix)}\n" + re.sub(r"(?m)^(?=.)", "    ", text))
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, (ast.If, ast.Try, ast.With)):
                visit(child, prefix)

    visit(tree, "")
    return "\n\n".join(parts)


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
