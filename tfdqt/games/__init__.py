"""Q-learning and PPO with Transformers on gymnasium environments."""
