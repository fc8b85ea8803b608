"""Text and fonts for synthetic training pages, from Debian packages.

Real manuals are scarce in Spanish, Italian and Portuguese, so synthetic pages carry most of the
reading lessons there. Their text is LibreOffice's offline help (MPL-2.0) and the translated manual
pages (GPL and others, see each page); their looks come from free fonts, cut down to Latin letters
so that a folder of them stays small. Everything is fetched with the package manager and unpacked
into a cache; nothing is installed and nothing of it is committed.
"""

import gzip
import html
import random
import re
import subprocess
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

from studies.embedded.documents import download

LANGUAGES = ("en", "fr", "de", "es", "it", "pt")
HELP = {"en": "en-US", "fr": "fr", "de": "de", "es": "es", "it": "it", "pt": "pt"}
MANUALS = {"fr": "fr", "de": "de", "es": "es", "it": "it", "pt": "pt_BR"}
TEXT_PACKAGES = (
    *(f"libreoffice-help-{name}" for name in ("en-us", "fr", "de", "es", "it", "pt", "pt-br")),
    *(f"manpages-{name}" for name in ("fr", "de", "es", "it", "pt-br", "es-dev", "it-dev", "pt-br-dev")),
)
FONT_PACKAGES = tuple(
    f"fonts-{name}"
    for name in [
        "lmodern",
        "texgyre",
        "dejavu-core",
        "dejavu-extra",
        "liberation2",
        "open-sans",
        "roboto-unhinted",
        "lato",
        "linuxlibertine",
        "crosextra-carlito",
        "crosextra-caladea",
        "cantarell",
        "freefont-ttf",
        "inconsolata",
        "ebgaramond",
        "gfs-didot",
        "gfs-neohellenic",
        "go",
        "oxygen",
        "play",
        "quicksand",
        "sil-charis",
        "sil-doulos",
        "sora",
        "urw-base35",
        "vollkorn",
        "adf-accanthis",
        "adf-baskervald",
        "adf-gillius",
        "adf-romande",
        "adf-universalis",
        "adf-verana",
        "cabin",
        "cmu",
        "dosis",
        "jura",
        "sil-andika",
        "junicode",
    ]
)
#: Font files by the start of their names; regular, bold and italic faces of text families.
FAMILIES = tuple(
    [
        "lmroman10-",
        "lmroman8-",
        "lmsans10-",
        "lmmono10-",
        "lmromandemi10-",
        "texgyrepagella-",
        "texgyretermes-",
        "texgyreheros-",
        "texgyrebonum-",
        "texgyreschola-",
        "texgyreadventor-",
        "texgyrecursor-",
        "texgyreheroscn-",
        "DejaVuSans.",
        "DejaVuSans-Bold.",
        "DejaVuSans-Oblique.",
        "DejaVuSansCondensed",
        "DejaVuSerif.",
        "DejaVuSerif-Bold.",
        "DejaVuSerif-Italic.",
        "DejaVuSansMono.",
        "DejaVuSansMono-Bold.",
        "LiberationSans-",
        "LiberationSerif-",
        "LiberationMono-Regular",
        "OpenSans-Regular",
        "OpenSans-Bold.",
        "OpenSans-Italic",
        "Roboto-Regular",
        "Roboto-Bold.",
        "Roboto-Italic",
        "RobotoCondensed-Regular",
        "Lato-Regular",
        "Lato-Bold.",
        "Lato-Italic",
        "LinLibertine_R.",
        "LinLibertine_RB.",
        "LinLibertine_RI.",
        "LinBiolinum_R",
        "Carlito-",
        "Caladea-",
        "Cantarell-Regular",
        "Cantarell-Bold",
        "FreeSerif.",
        "FreeSerifItalic",
        "FreeSans.",
        "FreeMono.",
        "Inconsolata",
        "EBGaramond12-",
        "GFSDidot.",
        "GFSNeohellenic.",
        "Go-Regular",
        "Go-Mono.",
        "Oxygen-Sans",
        "Oxygen-Regular",
        "Play-",
        "Quicksand-Regular",
        "CharisSIL-Regular",
        "CharisSIL-Italic",
        "DoulosSIL",
        "Sora-Regular",
        "C059-Roman",
        "C059-Bold",
        "P052-Roman",
        "P052-Italic",
        "URWBookman-Light",
        "URWGothic-Book",
        "NimbusRoman-Regular",
        "NimbusSans-Regular",
        "NimbusMonoPS-Regular",
        "NimbusSansNarrow-Regular",
        "Vollkorn-Regular",
        "AccanthisADFStd-Regular",
        "BaskervaldADFStd.",
        "GilliusADF-Regular",
        "RomandeADFStd-Regular",
        "UniversalisADFStd-Regular",
        "VeranaSans-Regular",
        "Cabin-Regular",
        "cmunrm",
        "cmunbx",
        "cmunti",
        "cmunss.",
        "cmuntt.",
        "Dosis-Medium",
        "Jura-Medium",
        "Andika-Regular",
        "JunicodeTwoBeta-Regular",
    ]
)
REQUIRED = "abcxyzABCXYZ0123456789àáâãäçèéêëìíîïñòóôõöùúûüßÀÉÖÜ¿¡.,;:()'-"
CHARACTERS = "".join(map(chr, [*range(0x20, 0x7F), *range(0xA0, 0x180)])) + "–—‘’‚“”„†•…‹›€™ﬁﬂ"


def unpacked(package: str, cache: Path) -> Path:
    """Return the folder of a package's unpacked files, fetching it once."""
    folder = cache / "unpacked" / package
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        partial.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", download(package, cache / "debs"), partial], check=True)
        partial.rename(folder)
    return folder


def help_paragraphs(page: str) -> list[str]:
    """Return the headings (marked `# `) and paragraphs of a LibreOffice help page."""
    body = page.split('id="DisplayArea"')[-1]
    tags = re.findall(r"<(h[1-4]|p)\b[^>]*>(.*?)</\1>", body, flags=re.S)
    return [("# " if tag[0] == "h" else "") + plain(re.sub(r"<[^>]+>", " ", inner)) for tag, inner in tags]


def manual_paragraphs(page: str) -> list[str]:
    """Return the headings (marked `# `) and paragraphs of a man page, its macros stripped."""
    paragraphs, lines = [], []
    for line in [*page.splitlines(), ".PP"]:
        line = (
            re.sub(r"\\f.|\\[&|/,^%]", "", line)
            .replace("\\-", "-")
            .replace("\\(aq", "'")
            .replace("\\(bu", "•")
        )
        line = re.sub(r"\\\[?\(?[a-zA-Z]{2}\]?", " ", line)
        macro = re.match(r"\.\s*([A-Z]+)\s*(.*)", line)
        if macro and macro[1] in ("SH", "SS"):
            paragraphs += [" ".join(lines), "# " + macro[2].strip('"').capitalize()]
            lines = []
        elif macro and macro[1] in ("B", "I", "BR", "BI", "IR", "RB", "RI"):
            lines.append(macro[2].replace('"', ""))
        elif line.startswith((".", "'")):
            paragraphs.append(" ".join(lines))
            lines = []
        else:
            lines.append(line)
    return [plain(paragraph) for paragraph in paragraphs]


def plain(text: str) -> str:
    """Return text with entities resolved and white space collapsed."""
    return " ".join(html.unescape(text).split())


def texts(cache: Path) -> dict[str, list[str]]:
    """Return each language's paragraphs without repeats, help pages and man pages mixed by page."""
    folders = [unpacked(package, cache) for package in TEXT_PACKAGES]
    by_language = {}
    for language in LANGUAGES:
        pages = []
        for folder in folders:
            for name in {HELP[language], "pt-BR" if language == "pt" else HELP[language]}:
                root = folder / "usr/share/libreoffice/help" / name / "text"
                pages += [help_paragraphs(path.read_text("utf-8")) for path in sorted(root.rglob("*.html"))]
            root = folder / "usr/share/man" / MANUALS.get(language, "-")
            pages += [
                manual_paragraphs(gzip.decompress(path.read_bytes()).decode("utf-8", errors="ignore"))
                for path in sorted(root.rglob("*.gz"))
            ]
        random.Random(0).shuffle(pages)
        seen = dict.fromkeys(paragraph for page in pages for paragraph in page if len(paragraph) > 12)
        by_language[language] = list(seen)
    return by_language


def fonts(cache: Path, target: Path) -> list[Path]:
    """Write the faces of `FAMILIES`, cut down to `CHARACTERS`, into target and return their paths."""
    target.mkdir(parents=True, exist_ok=True)
    written = {}
    for package in FONT_PACKAGES:
        for path in sorted(unpacked(package, cache).rglob("*.[ot]tf")):
            name = path.stem + path.suffix
            if name in written or not name.startswith(FAMILIES) or "caps" in name or "dunhill" in name:
                continue
            if set(map(ord, REQUIRED)) <= TTFont(path).getBestCmap().keys():
                written[name] = target / name.replace(" ", "")
                _subset(path, written[name])
    return sorted(written.values())


def _subset(source: Path, target: Path) -> None:
    options = subset.Options(layout_features=["kern", "liga"], hinting=False, notdef_outline=True)
    font = TTFont(source)
    cutter = subset.Subsetter(options)
    cutter.populate(text=CHARACTERS)
    cutter.subset(font)
    font.save(target)
