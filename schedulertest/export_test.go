package schedulertest

// DrainMost is Drain with another bound.
var DrainMost = drain
