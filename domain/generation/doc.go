// Package generation is the aggregate of an extraction's tables: that they were folded from its artifacts, how
// far, or why they could not be, and that somebody asked for them again. A generation is what one fold makes.
//
// Its stream is beside the extraction's, because folds come and go while segments are recorded, and the
// tables can be made anew without a change of what was extracted. A fold that fails is a fact about the
// tables: the extraction stays what it is. Decide and Evolve are pure.
package generation
