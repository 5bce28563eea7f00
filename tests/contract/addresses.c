/* Callables at addresses of the test's choice: whatever C allows for a PyObject, which is any multiple of 8.

   An object that CPython allocates lies at a multiple of 16. A static type or a static built-in lies where the compiler
   puts it, and a type's own allocator may put an instance at any multiple of 8. Each callable here appends
   (itself, its arguments) to `calls`, and returns a new object, or raises ValueError if it was made to. */
#include <Python.h>
#include <stdatomic.h>
#include <stddef.h>

static PyObject *calls;
static _Atomic long living;                    /* instances */

static PyObject *called(PyObject *what, PyObject *arguments, int raises) {
    PyObject *pair = PyTuple_Pack(2, what, arguments);
    if (pair == NULL) return NULL;
    int status = PyList_Append(calls, pair);
    Py_DECREF(pair);
    if (status < 0) return NULL;
    if (raises) return PyErr_SetString(PyExc_ValueError, "made to raise"), NULL;
    return PyFloat_FromDouble(0.5);
}

/* --- static types ------------------------------------------------------------------------------------------------- */

static PyObject *type_called(PyTypeObject *type, PyObject *arguments, PyObject *named) {
    return called((PyObject *)type, arguments, 0);
}

#define TYPE(text) { PyVarObject_HEAD_INIT(NULL, 0) .tp_name = text, .tp_basicsize = sizeof(PyObject), \
                     .tp_flags = Py_TPFLAGS_DEFAULT, .tp_new = type_called }
static struct { PyTypeObject type; } even __attribute__((aligned(16))) = { TYPE("addresses.Even") };
static struct { void *first; PyTypeObject type; } odd __attribute__((aligned(16))) = { NULL, TYPE("addresses.Odd") };
_Static_assert(offsetof(PyTypeObject, tp_name) % 8 == 0 && sizeof odd - sizeof even <= 16, "one word lies before it");

/* --- static built-ins --------------------------------------------------------------------------------------------- */

static PyObject *even_called(PyObject *self, PyObject *arguments);
static PyObject *odd_called(PyObject *self, PyObject *arguments);
static PyMethodDef even_method = {"even_built_in", even_called, METH_VARARGS, NULL};
static PyMethodDef odd_method = {"odd_built_in", odd_called, METH_VARARGS, NULL};
/* Zeros stand before each, where a collector may look for its header. */
static struct { void *header[2]; PyCFunctionObject function; } even_function __attribute__((aligned(16)));
static struct { void *header[3]; PyCFunctionObject function; } odd_function __attribute__((aligned(16)));

static PyObject *even_called(PyObject *self, PyObject *arguments) {
    return called((PyObject *)&even_function.function, arguments, 0);
}
static PyObject *odd_called(PyObject *self, PyObject *arguments) {
    return called((PyObject *)&odd_function.function, arguments, 0);
}

/* --- instances ---------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    void *memory;
    int raises;
} instance;

static PyObject *instance_call(PyObject *self, PyObject *arguments, PyObject *named) {
    return called(self, arguments, ((instance *)self)->raises);
}

static PyObject *instance_vectorcall(PyObject *self, PyObject *const *items, size_t count, PyObject *names) {
    PyObject *arguments = PyTuple_New(PyVectorcall_NARGS(count));
    if (arguments == NULL) return NULL;
    for (Py_ssize_t i = 0; i < PyVectorcall_NARGS(count); i++) PyTuple_SET_ITEM(arguments, i, Py_NewRef(items[i]));
    PyObject *result = called(self, arguments, ((instance *)self)->raises);
    Py_DECREF(arguments);
    return result;
}

static void instance_dealloc(PyObject *self) {
    PyMem_RawFree(((instance *)self)->memory);
    atomic_fetch_sub(&living, 1);
}

static PyTypeObject by_call = {
    PyVarObject_HEAD_INIT(NULL, 0) .tp_name = "addresses.ByCall", .tp_basicsize = sizeof(instance),
    .tp_flags = Py_TPFLAGS_DEFAULT, .tp_call = instance_call, .tp_dealloc = instance_dealloc };
static PyTypeObject by_vectorcall = {
    PyVarObject_HEAD_INIT(NULL, 0) .tp_name = "addresses.ByVectorcall", .tp_basicsize = sizeof(instance),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL, .tp_call = PyVectorcall_Call,
    .tp_dealloc = instance_dealloc, .tp_vectorcall_offset = offsetof(instance, vectorcall) };

/* make(residue, vectorcall, raises): an instance at an address of that residue of 64. */
static PyObject *make(PyObject *module, PyObject *arguments) {
    int residue, vectorcall, raises;
    if (!PyArg_ParseTuple(arguments, "ipp", &residue, &vectorcall, &raises)) return NULL;
    char *memory = PyMem_RawCalloc(1, sizeof(instance) + 128);
    if (memory == NULL) return PyErr_NoMemory();
    instance *made = (instance *)((((uintptr_t)memory + 63) & ~(uintptr_t)63) + residue);
    PyObject_Init((PyObject *)made, vectorcall ? &by_vectorcall : &by_call);
    made->vectorcall = instance_vectorcall;
    made->memory = memory;
    made->raises = raises;
    atomic_fetch_add(&living, 1);
    return (PyObject *)made;
}

static PyObject *count(PyObject *module, PyObject *unused) { return PyLong_FromLong(atomic_load(&living)); }

static PyMethodDef methods[] = {{"make", make, METH_VARARGS, "An instance at an address of a residue of 64."},
                                {"living", count, METH_NOARGS, "How many instances are alive."}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "addresses", NULL, -1, methods};

static int add_function(PyObject *to, const char *name, PyCFunctionObject *function, PyMethodDef *method) {
    PyObject_Init((PyObject *)function, &PyCFunction_Type);
    function->m_ml = method;
    Py_INCREF(function);                       /* it is never freed */
    return PyModule_AddObjectRef(to, name, (PyObject *)function);
}

PyMODINIT_FUNC PyInit_addresses(void) {
    PyObject *made = PyModule_Create(&module);
    if (made == NULL || (calls = PyList_New(0)) == NULL) return NULL;
#ifdef Py_GIL_DISABLED
    PyUnstable_Module_SetGIL(made, Py_MOD_GIL_NOT_USED);
#endif
    if (PyType_Ready(&by_call) < 0 || PyType_Ready(&by_vectorcall) < 0 || PyModule_AddType(made, &even.type) < 0 ||
        PyModule_AddType(made, &odd.type) < 0 || PyModule_AddObjectRef(made, "calls", calls) < 0 ||
        add_function(made, "even_built_in", &even_function.function, &even_method) < 0 ||
        add_function(made, "odd_built_in", &odd_function.function, &odd_method) < 0)
        return NULL;
    return made;
}
