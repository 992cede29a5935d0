"""Builds the C++ core once, as a static library, and every extension of fastray/_native against it.

FASTRAY_DEBUG=1                    -O0 -g, asserts and is_valid() checks (-DFASTRAY_CHECK)
FASTRAY_SANITIZE=thread|address    the sanitizer's build; run with its runtime preloaded
FASTRAY_JOBS=n                     compilers at a time (default: this machine's CPUs)
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("FASTRAY_DEBUG") == "1"
SANITIZE = os.environ.get("FASTRAY_SANITIZE", "")
JOBS = int(os.environ.get("FASTRAY_JOBS", 0)) or len(os.sched_getaffinity(0))

if SANITIZE not in ("", "thread", "address"):
    raise SystemExit(f"FASTRAY_SANITIZE={SANITIZE}: must be thread or address")
FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-plt"]
FLAGS += (
    ["-O0", "-g", "-UNDEBUG", "-DFASTRAY_CHECK"]
    if DEBUG
    else ["-O3", "-g0", "-ffunction-sections", "-fdata-sections"]
)
LINK_FLAGS = [] if DEBUG or SANITIZE else ["-Wl,-O1", "-Wl,--gc-sections", "-s"]
if SANITIZE:
    FLAGS += ["-g", "-O1", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"]
    LINK_FLAGS += [f"-fsanitize={SANITIZE}"]

HEADERS = sorted(glob("csrc/*.h"))
DECLARATIONS = sorted(glob("fastray/_native/*.pxd"))
CORE = {
    "sources": sorted(glob("csrc/*.cpp")),
    "include_dirs": ["csrc"],
    "cflags": [*FLAGS, "-Wall", "-Wextra"],
}


class BuildCore(build_clib):
    """The core's sources compiled side by side; one is compiled again when it or any header is newer."""

    def build_libraries(self, libraries):
        for name, info in libraries:
            with ThreadPoolExecutor(JOBS) as pool:
                objects = list(pool.map(partial(self._compile, info), info["sources"]))
            self.compiler.create_static_lib(objects, name, output_dir=self.build_clib)

    def _compile(self, info, source):
        target = self.compiler.object_filenames([source], output_dir=self.build_temp)[0]
        newest = max(os.path.getmtime(path) for path in [source, __file__, *HEADERS])
        if self.force or not os.path.exists(target) or os.path.getmtime(target) < newest:
            self.compiler.compile(
                [source], self.build_temp, include_dirs=info["include_dirs"], extra_postargs=info["cflags"]
            )
        return target


class BuildExtensions(build_ext):
    """Extensions after the core, side by side, with Cython's C++ in build/ instead of the tree."""

    def finalize_options(self):
        if self.distribution.ext_modules:
            from Cython.Build import cythonize

            self.distribution.ext_modules = cythonize(
                self.distribution.ext_modules, build_dir="build/cython", language_level=3, nthreads=JOBS
            )
        self.parallel = self.parallel or JOBS
        super().finalize_options()

    def run(self):
        self.run_command("build_clib")
        super().run()


setup(
    libraries=[("fastray_core", CORE)] if CORE["sources"] else [],
    ext_modules=[
        Extension(
            "fastray._native." + os.path.basename(path)[: -len(".pyx")],
            [path],
            language="c++",
            include_dirs=["csrc"],
            extra_compile_args=FLAGS,
            extra_link_args=LINK_FLAGS,
            depends=[*HEADERS, *CORE["sources"], *DECLARATIONS],
        )
        for path in sorted(glob("fastray/_native/*.pyx"))
    ],
    cmdclass={"build_clib": BuildCore, "build_ext": BuildExtensions},
)
