"""The hub: signs, announces and watches. It decides what may run; nodes decide when it is safe."""
