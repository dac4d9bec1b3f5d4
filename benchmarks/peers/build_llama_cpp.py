"""Build llama.cpp's `libmtmd`, and the few functions by which the benchmark calls it, in `.cache/llama.cpp`.

    python benchmarks/peers/build_llama_cpp.py [--jobs 2]

The sources are those in the source archive of llama-cpp-python, which pip downloads. cmake, a C++ compiler and about
two minutes on two cores are needed. The build is that of `cmake` without options, for this processor and without curl.
"""

import argparse
import subprocess
import sys
import tarfile
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".cache" / "llama.cpp"
BUILD = FOLDER / "build"
SHIM = Path(__file__).with_name("llama_cpp_shim.cpp")
PACKAGE = "llama-cpp-python==0.3.36"
OFF = ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER")


def find_archive() -> Path:
    """Return the source archive, which is downloaded if it is not there."""
    if not list(FOLDER.glob("*.tar.gz")):
        source_only = ["--no-deps", "--no-binary", "llama-cpp-python"]
        subprocess.run([sys.executable, "-m", "pip", "download", *source_only, PACKAGE, "-d", FOLDER], check=True)
    (archive,) = FOLDER.glob("*.tar.gz")
    return archive


def unpack(archive: Path) -> Path:
    """Unpack the archive, and return the folder of llama.cpp in it."""
    folder = FOLDER / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"
    if not folder.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(FOLDER, filter="data")
    return folder


def build(sources: Path, jobs: int) -> None:
    """Build `libmtmd` and what it needs, and then the shim."""
    choices = [f"-D{name}=OFF" for name in OFF] + ["-DBUILD_SHARED_LIBS=ON", "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run(["cmake", "-S", sources, "-B", BUILD, *choices], check=True)
    subprocess.run(["cmake", "--build", BUILD, "--target", "mtmd", f"-j{jobs}"], check=True)
    libraries = BUILD / "bin"
    headers = [f"-I{sources / name}" for name in ("tools/mtmd", "include", "ggml/include")]
    linked = [f"-L{libraries}", "-lmtmd", "-lllama", "-lggml", "-lggml-base", "-Wl,-rpath,$ORIGIN"]
    output = libraries / "libshim.so"
    command = ["c++", "-O2", "-std=c++17", "-shared", "-fPIC", *headers, SHIM, "-o", output, *linked]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    jobs = parser.parse_args().jobs
    FOLDER.mkdir(parents=True, exist_ok=True)
    archive = find_archive()
    build(unpack(archive), jobs)
    (BUILD / "version.txt").write_text(f"{archive.name.removesuffix('.tar.gz')}\n")


if __name__ == "__main__":
    main()
