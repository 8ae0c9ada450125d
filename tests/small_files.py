"""Folders of small texts, written and read."""


def write(folder, **files):
    """Write texts by name; `__` in a name is a slash."""
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def content(folder):
    """Return the text of each file by its name."""
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


def shown(folder):
    """Return `content` without what the machine keeps for itself."""
    return {name: text for name, text in content(folder).items() if not name.startswith(".")}
