package torch

// #include <stdlib.h>
// #include "kernels.h"
import "C"

import "unsafe"

// useKernels takes another build of the kernels, if this CPU can run it: for tests.
func useKernels(isa string) bool {
	text := C.CString(isa)
	defer C.free(unsafe.Pointer(text))
	return C.fm_kernels_use(text) != 0
}
