"""The typefaces that train: 96 families of Google Fonts, npm packages of a regular and often a bold face.

They are fetched once for a training run and not part of the project. The faces that test
(`model.nano.data.fonts.HELD_OUT_FACES`) are of other families.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

_FAMILIES = """
alegreya@0.4.2 alegreya-sans@0.4.2 anonymous-pro@0.4.1 architects-daughter@0.4.1 archivo@0.4.2
archivo-narrow@0.4.2 arimo@0.4.3 arvo@0.4.1 asap@0.4.3 barlow@0.4.1 barlow-condensed@0.4.1 bitter@0.4.2
cabin@0.4.2 cardo@0.4.1 chivo@0.4.2 comfortaa@0.4.2 cormorant-garamond@0.4.1 courier-prime@0.4.1
cousine@0.4.3 crimson-text@0.4.0 dm-mono@0.4.2 dm-sans@0.4.2 domine@0.4.2 eb-garamond@0.4.3 exo-2@0.4.2
figtree@0.4.1 fira-mono@0.4.1 fira-sans@0.4.1 gelasio@0.4.1 heebo@0.4.2 hind@0.4.1 ibm-plex-mono@0.4.1
ibm-plex-sans@0.4.1 ibm-plex-serif@0.4.1 inconsolata@0.4.2 inter@0.4.2 jetbrains-mono@0.4.1
josefin-sans@0.4.2 josefin-slab@0.4.1 kalam@0.4.1 kanit@0.4.1 karla@0.4.2 lexend@0.4.1
libre-baskerville@0.4.3 libre-franklin@0.4.2 lora@0.4.2 merriweather@0.4.2 montserrat@0.4.2 mulish@0.4.2
noto-sans@0.4.2 noto-serif@0.4.2 nunito@0.4.2 nunito-sans@0.4.2 old-standard-tt@0.1.0 open-sans@0.4.2
oswald@0.4.2 outfit@0.4.3 overpass@0.4.2 patrick-hand@0.4.1 playfair-display@0.4.2 plus-jakarta-sans@0.4.2
poppins@0.4.1 press-start-2p@0.4.1 prompt@0.4.1 pt-sans@0.4.1 pt-serif@0.4.1 public-sans@0.4.2
quicksand@0.4.1 raleway@0.4.2 roboto@0.4.3 roboto-condensed@0.4.2 roboto-mono@0.4.2 roboto-slab@0.4.2
rokkitt@0.4.2 rubik@0.4.2 saira@0.4.2 sarabun@0.4.1 share-tech-mono@0.4.1 signika@0.4.2 sora@0.4.2
source-code-pro@0.4.1 source-sans-3@0.4.1 space-grotesk@0.4.1 space-mono@0.4.2 special-elite@0.4.1
spectral@0.4.1 tinos@0.4.2 titillium-web@0.4.1 ubuntu@0.4.1 ubuntu-mono@0.4.1 urbanist@0.4.2
varela-round@0.4.1 vollkorn@0.4.1 vt323@0.4.1 work-sans@0.4.2 zilla-slab@0.4.1
"""
FAMILIES = tuple(_FAMILIES.split())
_FACES = ("400Regular", "700Bold")


def fetch(directory: Path) -> int:
    """Download all families with `npm pack`; returns the number of font files.

    Raises FileNotFoundError without npm, subprocess.CalledProcessError if a package cannot be had.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm: needed to fetch the training fonts")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for family in FAMILIES:
            command = [npm, "pack", "--silent", f"@expo-google-fonts/{family}"]
            packed = subprocess.run(command, cwd=work, check=True, capture_output=True, text=True)  # noqa: S603
            _unpack(Path(work) / packed.stdout.split()[-1], directory)
    return len(list(directory.glob("*.ttf")))


def _unpack(archive: Path, directory: Path) -> None:
    with tarfile.open(archive) as files:
        for member in files:
            path = Path(member.name)
            if path.suffix == ".ttf" and path.parent.name in _FACES:
                content = files.extractfile(member)
                assert content is not None, member.name
                (directory / path.name).write_bytes(content.read())
