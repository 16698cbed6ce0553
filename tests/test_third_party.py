"""A backend of another package is found by its entry point, and imported for its arrays."""

import os
import subprocess
import sys
import textwrap

import pytest

FILES = {
    "demo.py": "class Array: ...",
    "xentx_demo/__init__.py": """
        import demo
        from xentx.extending import ArrayAPIBackend

        class DemoBackend(ArrayAPIBackend):
            name = "demo"

            def owns(self, value):
                return isinstance(value, demo.Array)

        BACKEND = DemoBackend()
    """,
    "xentx_demo/testing.py": """
        from xentx.testing import Route

        class Demo(Route):
            name = framework = "demo"
            gaps = {
                "test_worked_example.py::test_gradient[demo]": "declared, and there is none",
                "test_worked_example.py::test_loss[demo-mean-*]": "what comes back is wrong",
            }

            def numpy(self, value):
                return value + (value.ndim == 0)

        ROUTES = (Demo,)
    """,
    "demo-1.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: demo\nVersion: 1.5\n",
    "xentx_demo-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: xentx-demo\nVersion: 1.0\n",
    "xentx_demo-1.0.dist-info/entry_points.txt": "[xentx.backends]\ndemo = xentx_demo:BACKEND\n",
}


@pytest.fixture
def run(tmp_path):
    """Run a program that can import the package, and return its output."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))

    def run(program, **environment):
        path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        done = subprocess.run(
            [sys.executable, "-P", "-c", textwrap.dedent(program)],
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_found_by_its_arrays(run):
    program = """
        import sys, xentx
        print(xentx.backends()[-1])
        print("xentx_demo" in sys.modules, "demo" in sys.modules)
        import demo
        class Derived(demo.Array): ...
        print(xentx.backend_of(Derived()))
    """
    reason = "the CPU kernel takes no arrays of demo"
    info = f"BackendInfo(name='demo', version='1.5', engine='portable', reason='{reason}')"
    assert run(program) == [info, "False False", info]


def test_its_routes(run):
    program = """
        from xentx.testing import requested_frameworks, routes
        print(requested_frameworks(), [route.name for route in routes(*requested_frameworks())])
    """
    assert run(program, XENTX_TEST_BACKENDS="demo") == ["('demo',) ['demo']"]


def test_gaps_that_it_declares(run):
    """Declared gaps are expected failures, and passing is an error."""
    program = """
        import pytest
        options = ["-q", "-rA", "-p", "no:cacheprovider", "-k", "test_gradient or test_loss"]
        pytest.main([*options, "--pyargs", "xentx.testing.test_worked_example"])
    """
    lines = run(program, XENTX_TEST_BACKENDS="demo")
    outcomes = dict(line.split()[1::-1] for line in lines if "::" in line)
    names = {name.rpartition("::")[2]: outcome for name, outcome in outcomes.items()}
    assert names == {
        "test_loss[demo-none-expected0]": "PASSED",
        "test_loss[demo-mean-0.390574]": "XFAIL",
        "test_loss[demo-sum-0.781147]": "FAILED",
        "test_gradient[demo]": "FAILED",
    }
    assert any("[XPASS(strict)] declared, and there is none" in line for line in lines)
