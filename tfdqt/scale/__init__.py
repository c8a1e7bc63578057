"""Past one process and one device: tf.distribute and Ray. Knows neither games nor texts."""
