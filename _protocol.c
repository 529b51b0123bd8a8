/* protocol.wrap_messages in C, with the same result: a pipelined message costs the server a fifth.

   Built where there is a compiler; protocol.py has the Python twin, which says what this is for. */

#include <Python.h>

enum { MESSAGE = 0x03, HEADER_BYTES = 4, PREFIX_BYTES = 2, MAX_TEXT_BYTES = 136 };

static int is_text(const char *bytes, Py_ssize_t length)
{
    PyObject *text = PyUnicode_DecodeUTF8(bytes, length, NULL);
    if (!text)
        PyErr_Clear();
    Py_XDECREF(text);
    return text != NULL;
}

/* memcpy for what is mostly short: a call would take longer. */
static inline unsigned char *copy(unsigned char *to, const unsigned char *from, Py_ssize_t bytes)
{
    for (; bytes >= 8; bytes -= 8, to += 8, from += 8)
        memcpy(to, from, 8);
    while (bytes-- > 0)
        *to++ = *from++;
    return to;
}

static PyObject *prefix_name; /* "prefix" */

static PyObject *wrap_messages(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    char *bytes, *prefix;
    Py_ssize_t size, prefix_size, count = 0;
    PyObject *wrapped = NULL;
    if (nargs != 4)
        return PyErr_Format(PyExc_TypeError, "wrap_messages takes 4 arguments, not %zd", nargs);
    Py_ssize_t at = PyLong_AsSsize_t(args[1]);
    int is_ascii = PyObject_IsTrue(args[3]);
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[0], &bytes, &size) < 0)
        return NULL;
    const unsigned char *data = (unsigned char *)bytes;
    PyObject *holder = PyObject_GetAttr(args[2], prefix_name);
    if (!holder || PyBytes_AsStringAndSize(holder, &prefix, &prefix_size) < 0)
        goto done;

    Py_ssize_t end = at;
    while (0 <= end && end <= size - HEADER_BYTES) {
        const unsigned char *packet = data + end;
        Py_ssize_t length = packet[3];
        if (packet[0] != MESSAGE || packet[1] != length + PREFIX_BYTES || packet[2] != 0
            || length > MAX_TEXT_BYTES - prefix_size || end + HEADER_BYTES + length > size
            || !(is_ascii || is_text((const char *)packet + HEADER_BYTES, length)))
            break;
        end += HEADER_BYTES + length;
        count++;
    }

    wrapped = PyBytes_FromStringAndSize(NULL, end - at + count * prefix_size);
    if (!wrapped)
        goto done;
    unsigned char *out = (unsigned char *)PyBytes_AS_STRING(wrapped);
    for (Py_ssize_t from = at; from < end;) {
        Py_ssize_t length = data[from + 3], text = length + prefix_size;
        *out++ = MESSAGE;
        *out++ = (unsigned char)(text + PREFIX_BYTES);
        *out++ = 0;
        *out++ = (unsigned char)text;
        out = copy(out, (unsigned char *)prefix, prefix_size);
        out = copy(out, data + from + HEADER_BYTES, length);
        from += HEADER_BYTES + length;
    }
done:
    Py_XDECREF(holder);
    return wrapped ? Py_BuildValue("Nnn", wrapped, count, end) : NULL;
}

static PyMethodDef methods[] = {
    {"wrap_messages", (PyCFunction)(void (*)(void))wrap_messages, METH_FASTCALL, "As protocol.wrap_messages."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_protocol", "protocol.py's hot loop.", -1, methods};

PyMODINIT_FUNC PyInit__protocol(void)
{
    prefix_name = PyUnicode_InternFromString("prefix");
    return prefix_name ? PyModule_Create(&module) : NULL;
}
