"""The laws of the house, by the imports that stand in the code; lazy ones count too."""

import ast
import subprocess
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tfdqt"

# Which part of the package may import which; every part may import itself.
GROUND = {
    "errors",
    "version",
    "settings",
    "backend",
    "losses",
    "memory",
    "modules",
    "policy",
    "replay",
    "stats",
    "histogram",
    "value_scale",
}
MAY_IMPORT = {
    "ground": set(),
    "scale": {"ground"},
    "runs": {"ground", "scale"},
    "puzzles": {"ground"},
    "games": {"ground", "scale", "runs", "puzzles"},
    "text": {"ground", "scale", "runs"},
    "report": {"ground", "runs", "games", "text"},
    "tfdqt": {"ground", "games", "text"},  # the package itself: load_policy and load_writer
}
# A library that only one module imports.
ALONE = {
    "tf_agents": "tfdqt.replay",
    "ray": "tfdqt.scale.ray_pool",
    "pyspiel": "tfdqt.games.open_spiel",
    "vl_convert": "tfdqt.report.page",
    "tensorflow_model_optimization": "tfdqt.text.encoder",
}
ALGORITHMS = {"tfdqt.games.dqn", "tfdqt.games.ppo", "tfdqt.games.pqn", "tfdqt.games.apex"}
# What an algorithm is given as functions and must not import by name.
GIVEN = {"tfdqt.games.networks", "tfdqt.games.features", "tfdqt.scale.ray_pool"}


def name_of(path):
    """The module in a file: tfdqt/games/dqn.py -> tfdqt.games.dqn."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(source, name, is_package=False):
    """The names of all modules that `source`, the module `name`, imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".") if is_package else name.split(".")[:-1]
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in MODULES else base)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
            found.update(arg.value for arg in node.args if isinstance(arg, ast.Constant))
    return found - {name}


def part_of(name):
    """Which part of the package a module belongs to."""
    parts = name.split(".")
    if parts == ["tfdqt"]:
        return "tfdqt"
    return "ground" if parts[1] in GROUND else parts[1]


def graph():
    """Module -> the modules of tfdqt that it imports."""
    found = {}
    for name, path in MODULES.items():
        source = path.read_text(encoding="utf-8")
        found[name] = imports(source, name, path.name == "__init__.py") & set(MODULES)
    return found


def upward(edges):
    """The imports that point up: [(module, imported)]."""
    return [
        (name, other)
        for name, others in edges.items()
        for other in sorted(others)
        if part_of(other) not in MAY_IMPORT[part_of(name)] | {part_of(name)}
    ]


def circle(edges):
    """The modules of one circle of imports, or None."""
    done = set()

    def visit(name, path):
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return None
        for other in sorted(edges[name]):
            if round_trip := visit(other, [*path, name]):
                return round_trip
        done.add(name)
        return None

    return next((found for name in edges if (found := visit(name, []))), None)


class Laws(unittest.TestCase):
    def test_every_module_belongs_to_a_part(self):
        self.assertEqual({part_of(name) for name in MODULES}, set(MAY_IMPORT))

    def test_imports_only_point_to_the_ground_and_the_wings_do_not_know_each_other(self):
        self.assertEqual(upward(graph()), [])

    def test_there_are_no_circles(self):
        self.assertIsNone(circle(graph()))

    def test_an_algorithm_imports_no_network_and_no_environment(self):
        edges = graph()
        for name in ALGORITHMS:
            self.assertEqual(edges[name] & GIVEN, set(), name)
            source = MODULES[name].read_text(encoding="utf-8")
            self.assertNotIn("gymnasium", {each.split(".")[0] for each in imports(source, name)})
            self.assertNotIn("make_env", source.replace("make_env_", ""), name)

    def test_a_library_has_one_door(self):
        for name, path in MODULES.items():
            source = path.read_text(encoding="utf-8")
            for each in imports(source, name, path.name == "__init__.py"):
                door = ALONE.get(each.split(".")[0], name)
                self.assertEqual(name, door, f"{name} imports {each}")

    def test_what_is_compiled_is_traced_as_it_is(self):
        for name, path in MODULES.items():
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                compiles = isinstance(node, ast.Attribute) and ast.unparse(node) == "tf.function"
                self.assertFalse(compiles and name != "tfdqt.backend", f"{name}: use traced")

    def test_settings_load_no_tensorflow(self):
        for module in ("tfdqt.games.config", "tfdqt.games.algorithms", "tfdqt.text.config"):
            code = f"import sys, {module}; print('tensorflow' in sys.modules)"
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            self.assertEqual(done.stdout.strip(), "False", module)

    def test_no_algorithm_is_asked_for_by_name_outside_of_the_table(self):
        for path in [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Compare) and "algorithm" in ast.unparse(node.left):
                    names = {
                        leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)
                    }
                    self.assertEqual(names & {"dqn", "ppo", "pqn"}, set(), path)


class TheLawsCanFail(unittest.TestCase):
    def test_an_upward_import_is_seen(self):
        edges = graph()
        edges["tfdqt.losses"] = edges["tfdqt.losses"] | {"tfdqt.games.dqn"}
        self.assertEqual(upward(edges), [("tfdqt.losses", "tfdqt.games.dqn")])
        self.assertIn("tfdqt.losses", circle(edges))

    def test_the_other_wing_is_seen(self):
        edges = graph()
        edges["tfdqt.text.learn"] = edges["tfdqt.text.learn"] | {"tfdqt.games.loop"}
        self.assertEqual(upward(edges), [("tfdqt.text.learn", "tfdqt.games.loop")])

    def test_lazy_and_relative_imports_are_seen(self):
        source = "def late():\n    from tfdqt.games import dqn\n    from . import loop\n"
        self.assertEqual(
            imports(source, "tfdqt.games.window"), {"tfdqt.games.dqn", "tfdqt.games.loop"}
        )


if __name__ == "__main__":
    unittest.main()
