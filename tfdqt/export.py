"""A trained network as a SavedModel that TensorFlow alone can load and call."""

from tfdqt.backend import quiet, tf


def export_saved_model(networks, weights, folder):
    """Write a SavedModel with the signatures `q_values` and `action`.

    Both take a batch of windows under the names of the network's inputs: obs [B, C, F], first [B, C] int32 (1 where an
    episode starts; every place before it must be 1 too) and, if the network has it, prev_action [B, C] int32 (-1 where
    there is none). `q_values` gives q_values [B, A] of the last step, `action` gives action [B] int32.
    """
    module = tf.Module()
    module.weights = tf.Variable(weights, name="weights")
    specs = {name: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name) for name, tensor in networks.model.input.items()}

    def values(inputs):
        return networks.apply(module.weights.value(), inputs)[:, -1]

    @tf.function(input_signature=[specs], autograph=False)
    def q_values(inputs):
        return dict(q_values=values(inputs))

    @tf.function(input_signature=[specs], autograph=False)
    def action(inputs):
        return dict(action=tf.argmax(values(inputs), axis=-1, output_type=tf.int32))

    module.q_values, module.action = q_values, action
    with quiet():
        tf.saved_model.save(module, str(folder), signatures=dict(
            q_values=_by_keyword(q_values, specs), action=_by_keyword(action, specs)))


def _by_keyword(function, specs):
    """A signature takes its inputs by keyword, not as one dict."""
    return tf.function(lambda **inputs: function(inputs), autograph=False).get_concrete_function(**specs)
