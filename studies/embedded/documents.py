"""Fetch the PDF manuals that Debian packages carry.

A manifest names each document, its package and its path inside the package. Packages come from the
package manager (`apt-get download`) into a cache folder, one download a package however many
documents it holds; only the named files are unpacked, nothing is installed. Documents already in
the cache are not fetched again. This module does not choose documents and does not render them.
"""

import gzip
import hashlib
import json
import subprocess
import tarfile
from collections import defaultdict
from pathlib import Path


class DocumentError(RuntimeError):
    """A package could not be downloaded, or it does not hold the document the manifest names."""


def read_manifest(path: Path) -> list[dict]:
    """Read a manifest: a JSON list of entries with name, lang, deb, path_in_deb, license."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_name(document: dict) -> str:
    """Return the package of a manifest entry, without the version that may follow it."""
    return document["deb"].split()[0]


def download(package: str, folder: Path) -> Path:
    """Return the package's .deb file in folder, downloading it once.

    Raises DocumentError where the package manager is missing or does not know the package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    present = sorted(folder.glob(f"{package}_*.deb"))
    if present:
        return present[-1]
    try:
        result = subprocess.run(
            ["apt-get", "download", package], cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise DocumentError(
            f"cannot download {package}: apt-get is not installed (Debian or Ubuntu only)"
        ) from None
    present = sorted(folder.glob(f"{package}_*.deb"))
    if result.returncode != 0 or not present:
        reason = result.stderr.strip().splitlines()
        raise DocumentError(
            f"cannot download package {package}: {reason[-1] if reason else 'no file came'}"
            " (run `apt-get update` first?)"
        )
    return present[-1]


def version(deb: Path) -> str:
    """Return the version of a .deb file, as in `2.100`."""
    result = subprocess.run(
        ["dpkg-deb", "-f", str(deb), "Version"], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def unpack(deb: Path, wanted: dict[str, Path]) -> None:
    """Write the files of a .deb named by absolute path to their targets, gunzipping `.gz` ones.

    Raises DocumentError when a path is not in the package or is not a regular file.
    """
    missing = {"." + path: target for path, target in wanted.items()}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                if member.name not in missing or not member.isfile():
                    continue
                content = archive.extractfile(member).read()
                target = missing.pop(member.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_suffix(".partial")
                partial.write_bytes(gzip.decompress(content) if member.name.endswith(".gz") else content)
                partial.replace(target)
                if not missing:
                    break
        process.kill()  # the rest of the archive is not needed
    if missing:
        paths = ", ".join(sorted(name[1:] for name in missing))
        raise DocumentError(f"{deb.name} does not hold {paths}; its version may differ from the manifest's")


def fetch(documents: list[dict], cache: Path) -> dict[str, Path]:
    """Return the path of every document's PDF in the cache, downloading what is not there.

    documents: manifest entries; cache: a folder, which gets `debs/`, `pdf/` and `checksums.json`
    (document name -> sha256). An entry that has a `sha256` of its own must match it. Raises
    DocumentError as `download` and `unpack` do, and where a checksum differs.
    """
    cache = Path(cache)
    paths = {document["name"]: cache / "pdf" / f"{document['name']}.pdf" for document in documents}
    by_package = defaultdict(dict)
    for document in documents:
        if not paths[document["name"]].exists():
            by_package[package_name(document)][document["path_in_deb"]] = paths[document["name"]]
    for package, wanted in by_package.items():
        unpack(download(package, cache / "debs"), wanted)
    _record_checksums(documents, paths, cache / "checksums.json")
    return paths


def _record_checksums(documents: list[dict], paths: dict[str, Path], record: Path) -> None:
    checksums = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    for document in documents:
        name = document["name"]
        checksums[name] = sha256(paths[name])
        if document.get("sha256", checksums[name]) != checksums[name]:
            raise DocumentError(
                f"{name}: sha256 {checksums[name][:12]}… differs from the manifest's "
                f"{document['sha256'][:12]}…; the package's version is not {document['deb']}"
            )
    record.write_text(json.dumps(checksums, indent=1, sort_keys=True) + "\n", encoding="utf-8")
