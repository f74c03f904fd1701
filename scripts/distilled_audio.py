"""Create the training audio of ssamba_distilled: six hours, all of it free to use.

    python scripts/distilled_audio.py AUDIO OUT

AUDIO contains the Free Spoken Digit Dataset in ``fsdd/recordings`` and ESC-10 in ``esc10``, as for scripts/study.py.
The script writes links to both into OUT, and

- ``more/prompts``: prompts in five languages, recorded by professional speakers for the telephone exchange Asterisk,
  from the Debian packages ``asterisk-core-sounds-{en,es,fr,it,ru}-wav`` (CC BY-SA 3.0, Italian and Russian CC BY 3.0);
- ``more/espeak-ng`` and ``more/flite``: words and numbers, synthesised in many languages and voices.

Requires Debian or Ubuntu with the packages espeak-ng, flite, wamerican, wdutch, wfrench, witalian, wngerman, wpolish,
wportuguese and wspanish. Existing files are kept, so run the same command again to continue an interrupted one.
To train on the result, use ``ssamba pretrain distilled`` with manifests, or ``scripts/study.py OUT ...``, which
excludes the test recordings.
"""

import argparse
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import soundfile
from tqdm import tqdm

from ssamba_upstream.audio import SAMPLE_RATE, read_clip
from ssamba_upstream.files import replacing

LANGUAGES = ("en", "es", "fr", "it", "ru")  # languages of the prompts
SPOKEN = {"espeak-ng": 6000, "flite": 1500}  # number of utterances
WORDS = {
    "american-english": ("en-us", "en-gb", "en-gb-scotland", "en-029"), "dutch": ("nl",), "french": ("fr-fr", "fr-be"),
    "italian": ("it",), "ngerman": ("de",), "polish": ("pl",), "portuguese": ("pt", "pt-br"),
    "spanish": ("es", "es-419"),
}
"""Debian's word lists, and espeak-ng's voices for them. Voices of other languages speak numbers."""
VARIANTS = ("f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8 adam anika antonio aunty belinda benjamin boris caleb david ed "
            "edward linda marcelo max michel miguel pablo paul pedro quincy rob robert sandro shelby steph travis "
            "victor").split()
NUMBERS = ("af am ar az bg bn bs ca cmn cs cy da el eo et eu fa fi ga gu he hi hr hu hy id is ja ka kk kn ko ku la "
           "lt lv mk ml mr ms mt nb ne pa ro ru sk sl sq sr sv sw ta te th tr uk ur vi yue").split()
"""espeak-ng's voices for languages without a word list."""
FLITE_VOICES = ("awb", "kal16", "rms", "slt")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    if missing := [tool for tool in ("apt-get", "dpkg-deb", *SPOKEN) if not shutil.which(tool)]:
        parser.error(f"{', '.join(missing)} not found. Install the packages that --help names, on Debian or Ubuntu.")
    lists = {name: Path("/usr/share/dict", name) for name in WORDS}
    if missing := [name for name, path in lists.items() if not path.is_file()]:
        parser.error(f"no word lists {', '.join(missing)}. Install the packages that --help names.")
    (options.out / "more").mkdir(parents=True, exist_ok=True)
    for name in ("fsdd", "esc10"):
        if not (options.out / name).exists():
            (options.out / name).symlink_to((options.audio / name).resolve(), target_is_directory=True)
    for language in LANGUAGES:
        unpack_prompts(language, options.out / "more" / "prompts" / language)
    words = {name: [w for w in path.read_text("utf-8").split() if w.isalpha()] for name, path in lists.items()}
    for engine, count in SPOKEN.items():
        speak(engine, count, words, options.out / "more" / engine)
    print(f"wrote {options.out}")


def unpack_prompts(language, out):
    """Download a Debian package of prompts, and keep those with speech."""
    if out.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        subprocess.run(["apt-get", "download", "-q", f"asterisk-core-sounds-{language}-wav"], cwd=folder, check=True)
        package, = Path(folder).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
        voice, = Path(folder, "usr/share/asterisk/sounds").iterdir()
        shutil.rmtree(voice / "silence", ignore_errors=True)
        voice.rename(out)


def speak(engine, count, words, out):
    """Synthesise utterances with espeak-ng or flite, each with its own seed, as 16-bit wav at 16 kHz."""
    out.mkdir(exist_ok=True)
    for number in tqdm(range(count), engine):
        target = out / f"{number:04d}.wav"
        if target.exists():
            continue
        draw = random.Random(f"{engine} {number}")
        with tempfile.NamedTemporaryFile(suffix=".wav") as spoken:
            command = flite(draw, words) if engine == "flite" else espeak_ng(draw, words)
            subprocess.run([part.format(out=spoken.name) for part in command], check=True, capture_output=True)
            wav = read_clip(spoken.name)
        with replacing(target) as temporary:
            soundfile.write(temporary, wav.numpy(), SAMPLE_RATE, format="WAV")


def flite(draw, words):
    """Draw an utterance of one to three English words."""
    stretch = f"duration_stretch={draw.uniform(0.8, 1.3)}"
    text = " ".join(draw.choices(words["american-english"], k=draw.randint(1, 3)))
    return "flite", "-voice", draw.choice(FLITE_VOICES), "--setf", stretch, "-t", text, "-o", "{out}"


def espeak_ng(draw, words):
    """Draw an utterance of one to three words, or of a number in a language without a word list."""
    if draw.random() < 0.5:
        name = draw.choice(sorted(words))
        language, text = draw.choice(WORDS[name]), " ".join(draw.choices(words[name], k=draw.randint(1, 3)))
    else:
        language, text = draw.choice(NUMBERS), str(draw.randrange(10 ** draw.randint(1, 4)))
    voice, pitch, speed = f"{language}+{draw.choice(VARIANTS)}", draw.randint(20, 80), draw.randint(110, 220)
    return "espeak-ng", "-v", voice, "-p", f"{pitch}", "-s", f"{speed}", "-w", "{out}", text


if __name__ == "__main__":
    main()
