"""Every function: the same result for the same input, another for another, and refused inputs."""

import hashlib
import json
import random
import unittest

import numpy as np

import workloads
from workloads.parameters import InputError


class EveryFunction(unittest.TestCase):
    """What holds for all ten."""

    @classmethod
    def setUpClass(cls):
        cls.functions = {name: workloads.load(name) for name in workloads.NAMES}

    def each(self):
        for name, function in self.functions.items():
            with self.subTest(function=name):
                yield function

    def test_results_depend_on_the_seed_and_on_nothing_else(self):
        for function in self.each():
            first, second = function.handle({"seed": 1}), function.handle({"seed": 2})
            self.assertNotEqual(first, second)
            self.assertEqual(function.handle({"seed": 1}), first)
            self.assertEqual(function.handle({"seed": 2}), second)
            self.assertEqual(function.handle({}), first)

    def test_several_seeds_all_differ(self):
        for function in self.each():
            smallest = {size.name: size.minimum for size in function.SIZES}
            if function.__name__.endswith("helloworld"):
                smallest["greetings"] = 8
            if function.__name__.endswith("image_rotate"):
                smallest |= {"width": 64, "height": 48}
            if function.__name__.endswith("rnn_serving"):
                smallest["characters"] = 8
            results = {json.dumps(function.handle({"seed": seed} | smallest)) for seed in range(12)}
            self.assertEqual(len(results), 12)

    def test_results_are_json_without_loss(self):
        for function in self.each():
            result = function.handle({"seed": 7})
            self.assertEqual(json.loads(json.dumps(result, allow_nan=False)), result)
            self.assertLess(len(json.dumps(result)), 4096)

    def test_the_largest_sizes_and_seed_are_served(self):
        for function in self.each():
            sizes = {size.name: size.maximum for size in function.SIZES}
            if function.__name__.endswith(".pyaes"):
                # Minutes of pure Python.
                sizes = {"records": 4000, "record_bytes": 1}
            self.assertTrue(function.handle({"seed": 2**64 - 1} | sizes))

    def test_wrong_inputs_are_refused(self):
        wrong = [None, [], "seed", 1, {"seed": "1"}, {"seed": -1}, {"seed": 2**64}, {"seed": 1.0}]
        wrong += [{"seed": True}, {"seed": None}, {"sed": 1}, {"x" * 60_000: 1}]
        for function in self.each():
            cases = list(wrong)
            for size in function.SIZES:
                cases += [{size.name: value} for value in (size.maximum + 1, "1", None, 1.5, [])]
                cases += [{size.name: size.minimum - 1}]
            for case in cases:
                with self.assertRaises(InputError) as refused:
                    function.handle(case)
                self.assertLess(len(str(refused.exception)), 300)


class Results(unittest.TestCase):
    """Results against computations made in another way."""

    def test_pyaes_is_aes_in_counter_mode(self):
        # NIST SP 800-38A, section F.5.1, first block; the counter's lower half does not wrap there.
        from pyaes import AES

        function = workloads.load("pyaes")
        key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
        record = bytes(range(40))
        expected = bytearray()
        for block in range(3):
            counter = (5 << 64) + block
            stream = bytes(AES(key).encrypt(counter.to_bytes(16, "big")))
            expected += bytes(a ^ b for a, b in zip(record[block * 16 :], stream, strict=False))
        self.assertEqual(function.encrypt(key, 5, record), bytes(expected))
        block = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
        self.assertEqual(bytes(AES(key).encrypt(block)).hex(), "3ad77bb40d7a3660a89ecaf32466ef97")

    def test_a_rotation_by_half_a_turn_is_two_by_a_quarter(self):
        function = workloads.load("image_rotate")
        sizes = {"seed": 3, "width": 200, "height": 100}
        shapes = [
            (result["width"], result["height"])
            for result in (function.handle(sizes | {"quarter_turns": turns}) for turns in range(4))
        ]
        self.assertEqual(shapes, [(200, 100), (100, 200), (200, 100), (100, 200)])

    def test_the_convolution_is_the_sum_over_its_window(self):
        function = workloads.load("cnn_serving")
        generator = np.random.default_rng(0)
        data = generator.standard_normal((16, 6, 5)).astype(np.float32)
        kernel, bias = (function._weights[f"fire0_expand3.{part}"] for part in ("kernel", "bias"))
        result = function._convolve(data, "fire0_expand3")
        self.assertEqual(result.shape, (64, 6, 5))
        for channel, row, column in ((0, 0, 0), (5, 3, 2), (63, 5, 4)):
            total = float(bias[channel])
            for source in range(16):
                for down in range(3):
                    for right in range(3):
                        y, x = row + down - 1, column + right - 1
                        if 0 <= y < 6 and 0 <= x < 5:
                            total += float(
                                kernel[channel, source, down, right] * data[source, y, x]
                            )
            self.assertAlmostEqual(float(result[channel, row, column]), max(total, 0), places=3)

    def test_probabilities_of_the_networks_add_up(self):
        cnn, rnn = workloads.load("cnn_serving"), workloads.load("rnn_serving")
        probabilities = cnn.classify(cnn._read_picture(random.Random(1)))
        self.assertEqual(probabilities.shape, (cnn.CLASSES,))
        self.assertAlmostEqual(float(probabilities.sum()), 1, places=4)
        states = [np.zeros(rnn.HIDDEN_UNITS, dtype=np.float32) for _ in range(rnn.LAYERS)]
        first, states = rnn.step(3, states)
        second, _ = rnn.step(3, states)
        self.assertAlmostEqual(float(first.sum()), 1, places=4)
        # The same character again: only the state tells the two steps apart.
        self.assertFalse(np.allclose(first, second))

    def test_the_review_model_tells_good_from_bad(self):
        function = workloads.load("lr_serving")
        right = 0
        for seed in range(20):
            positive = random.Random(seed).random() < 0.5
            right += function.handle({"seed": seed, "words": 200})["positive"] == positive
        self.assertGreaterEqual(right, 18)

    def test_training_learns_and_more_of_it_learns_more(self):
        function = workloads.load("lr_training")
        short = function.handle({"seed": 1, "documents": 1000, "epochs": 1})
        long = function.handle({"seed": 1, "documents": 1000, "epochs": 30})
        self.assertGreater(long["accuracy"], 0.9)
        self.assertGreater(long["weights_l2"], short["weights_l2"])

    def test_the_greetings_are_those_of_the_digest(self):
        function = workloads.load("helloworld")
        one = function.handle({"seed": 4, "greetings": 1})
        self.assertEqual(hashlib.sha256(one["first"].encode()).hexdigest(), one["sha256"])

    def test_a_template_escapes_what_it_renders(self):
        from chameleon import PageTemplate

        function = workloads.load("chameleon")
        page = PageTemplate(function._TABLE).render(options={"title": "<b>", "rows": [{"c": 1}]})
        self.assertIn("&lt;b&gt;", page)
        self.assertIn('<span class="column-2">2</span>', page)
        self.assertEqual(function.handle({"rows": 3, "columns": 4})["cells"], 12)


if __name__ == "__main__":
    unittest.main()
