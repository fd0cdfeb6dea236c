/* What walls of voxels need that no library does fast: distances in a plane, crumbs, and carving without tearing.
 *
 * The Python beside each caller says the same in NumPy and SciPy, and gives the same bytes where this is missing.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    Py_ssize_t x, y, z;
} Shape;

/* ------------------------------------------------------------------------------------- distances in each plane */

/* Pixels of one plane, and for each the square of the distance along y to the nearest one that is `kind`. */
typedef struct {
    uint8_t *set;
    int32_t *along, *best;
} Plane;

static void scan_columns(const Plane *plane, const Shape *shape, int kind, int32_t reach) {
    for (Py_ssize_t x = 0; x < shape->x; x++) {
        const uint8_t *set = plane->set + x * shape->y;
        int32_t *along = plane->along + x * shape->y, far = reach;
        for (Py_ssize_t y = 0; y < shape->y; y++) along[y] = far = set[y] == kind ? 0 : far < reach ? far + 1 : reach;
        far = reach;
        for (Py_ssize_t y = shape->y - 1; y >= 0; y--) {
            far = set[y] == kind ? 0 : far < reach ? far + 1 : reach;
            along[y] = (far < along[y] ? far : along[y]);
            along[y] *= along[y];
        }
    }
}

/* Least of along + dx^2 over the rows within reach. */
static void scan_rows(const Plane *plane, const Shape *shape, int32_t reach) {
    for (Py_ssize_t x = 0; x < shape->x; x++) {
        int32_t *best = plane->best + x * shape->y;
        for (Py_ssize_t y = 0; y < shape->y; y++) best[y] = reach * reach;
        Py_ssize_t first = x > reach ? x - reach : 0, last = x + reach < shape->x ? x + reach : shape->x - 1;
        for (Py_ssize_t row = first; row <= last; row++) {
            const int32_t *along = plane->along + row * shape->y;
            int32_t square = (int32_t)((row - x) * (row - x));
#pragma omp simd
            for (Py_ssize_t y = 0; y < shape->y; y++) {
                int32_t squared = along[y] + square;
                best[y] = squared < best[y] ? squared : best[y];
            }
        }
    }
}

/* Signed distances of plane z, negative where set; beyond the border nothing is set. */
static void measure(const uint8_t *masks, float *out, const Shape *shape, Py_ssize_t z, double clip,
                    const Plane *plane) {
    int32_t reach = (int32_t)ceil(clip) + 2;
    Shape padded = {shape->x + 2, shape->y + 2, 1};
    memset(plane->set, 0, (size_t)(padded.x * padded.y));
    for (Py_ssize_t x = 0; x < shape->x; x++)
        for (Py_ssize_t y = 0; y < shape->y; y++)
            plane->set[(x + 1) * padded.y + y + 1] = masks[(x * shape->y + y) * shape->z + z] != 0;
    for (int kind = 0; kind < 2; kind++) {
        scan_columns(plane, &padded, kind, reach);
        scan_rows(plane, &padded, reach);
        for (Py_ssize_t x = 0; x < shape->x; x++)
            for (Py_ssize_t y = 0; y < shape->y; y++) {
                Py_ssize_t at = (x + 1) * padded.y + y + 1;
                if (plane->set[at] == kind) continue;
                double far = sqrt((double)plane->best[at]) - 0.5;
                far = far < clip ? far : clip;
                out[(x * shape->y + y) * shape->z + z] = (float)(kind ? far : -far);
            }
    }
}

static int signed_distances(const uint8_t *masks, float *out, const Shape *shape, double clip) {
    size_t size = (size_t)((shape->x + 2) * (shape->y + 2));
    Plane plane = {malloc(size), malloc(size * sizeof(int32_t)), malloc(size * sizeof(int32_t))};
    int ready = plane.set && plane.along && plane.best;
    for (Py_ssize_t z = 0; ready && z < shape->z; z++) measure(masks, out, shape, z, clip, &plane);
    free(plane.set);
    free(plane.along);
    free(plane.best);
    return ready;
}

/* ------------------------------------------------------------------------------------------------------ crumbs */

#define MOST 64 /* pixels of the largest crumb that can be asked for */

/* Neighbours of a voxel in its plane that are `kind` too; indices into the (X, Y, Z) array. */
static int beside(const uint8_t *set, const Shape *shape, Py_ssize_t at, int kind, Py_ssize_t *out) {
    Py_ssize_t y = at / shape->z % shape->y, x = at / shape->z / shape->y;
    Py_ssize_t steps[4] = {x > 0 ? -shape->y * shape->z : 0, x < shape->x - 1 ? shape->y * shape->z : 0,
                           y > 0 ? -shape->z : 0, y < shape->y - 1 ? shape->z : 0};
    int count = 0;
    for (int i = 0; i < 4; i++)
        if (steps[i] && set[at + steps[i]] == kind) out[count++] = at + steps[i];
    return count;
}

/* Turn over the piece that a pixel belongs to if it has at most `most` pixels; told by `crumb`. */
static void sweep(const uint8_t *set, uint8_t *crumb, const Shape *shape, Py_ssize_t at, int most) {
    Py_ssize_t piece[MOST + 4] = {at}, near[4];
    int size = 1;
    for (int done = 0; done < size; done++) {
        int count = beside(set, shape, piece[done], set[at], near);
        for (int i = 0; i < count; i++) {
            int known = 0;
            for (int k = 0; k < size; k++) known |= piece[k] == near[i];
            if (!known) piece[size++] = near[i];
        }
        if (size > most) return;
    }
    for (int k = 0; k < size; k++) crumb[piece[k]] = 1;
}

/* Mark the pieces of `kind`, plane by plane, that have few pixels. Each has one with none before it along x or y. */
static void find_crumbs(const uint8_t *set, uint8_t *crumb, const Shape *shape, int kind, int most) {
    Py_ssize_t row = shape->y * shape->z;
    for (Py_ssize_t x = 0; x < shape->x; x++)
        for (Py_ssize_t y = 0; y < shape->y; y++)
            for (Py_ssize_t at = (x * shape->y + y) * shape->z, end = at + shape->z; at < end; at++)
                if (set[at] == kind && (!x || set[at - row] != kind) && (!y || set[at - shape->z] != kind))
                    sweep(set, crumb, shape, at, most);
}

/* ----------------------------------------------------------------------------------------------------- carving */

#define NEIGHBOURS 26

typedef struct {
    int steps[NEIGHBOURS][3];
    Py_ssize_t offsets[NEIGHBOURS];
    uint32_t touching[NEIGHBOURS], sharing[NEIGHBOURS]; /* neighbours that touch one; that share a face with it */
    uint32_t faces, near;                               /* neighbours that share a face, or an edge at least */
} Around;

static void look_around(Around *around, const Shape *shape) {
    int n = 0;
    memset(around, 0, sizeof *around);
    for (int k = 0; k < 27; k++) {
        if (k == 13) continue;
        int step[3] = {k / 9 - 1, k / 3 % 3 - 1, k % 3 - 1};
        memcpy(around->steps[n], step, sizeof step);
        around->offsets[n] = (step[0] * shape->y + step[1]) * shape->z + step[2];
        int reach = abs(step[0]) + abs(step[1]) + abs(step[2]);
        around->faces |= (uint32_t)(reach == 1) << n;
        around->near |= (uint32_t)(reach <= 2) << n++;
    }
    for (int a = 0; a < NEIGHBOURS; a++)
        for (int b = 0; b < NEIGHBOURS; b++) {
            int total = 0, most = 0;
            for (int i = 0; i < 3; i++) {
                int apart = abs(around->steps[a][i] - around->steps[b][i]);
                total += apart, most = apart > most ? apart : most;
            }
            around->touching[a] |= (uint32_t)(most == 1) << b;
            if (around->near >> a & around->near >> b & 1) around->sharing[a] |= (uint32_t)(total == 1) << b;
        }
}

/* Whether there are seeds, all of them in one piece of the members. */
static int together(uint32_t members, uint32_t seeds, const uint32_t *links) {
    uint32_t reached = seeds & (~seeds + 1), fresh = reached;
    while (fresh) {
        uint32_t next = 0;
        for (int n = 0; fresh >> n; n++)
            if (fresh >> n & 1) next |= links[n];
        fresh = next & members & ~reached;
        reached |= fresh;
    }
    return seeds && !(seeds & ~reached);
}

/* Whether taking a voxel changes no topology (Bertrand and Malandain 1994). */
static int simple(const Around *around, const uint8_t *block, Py_ssize_t at) {
    uint32_t wall = 0;
    for (int n = 0; n < NEIGHBOURS; n++) wall |= (uint32_t)(block[at + around->offsets[n]] != 0) << n;
    return together(~wall & around->near, ~wall & around->faces, around->sharing) &&
           together(wall, wall, around->touching);
}

typedef struct {
    Py_ssize_t at;
    int32_t level;
    int32_t parity;
} Voxel;

#define LEVELS 100000 /* what is farther off than all of them counts as the last */

static int32_t level_of(float distance, double level_mm) {
    double level = floor((double)distance / level_mm);
    return level < LEVELS - 1 ? (int32_t)level : LEVELS - 1;
}

/* Take what is simple, the farthest level first and all levels so far again until nothing gives. */
static void peel(uint8_t *block, const Around *around, Voxel *voxels, Py_ssize_t count, Voxel *left) {
    Py_ssize_t kept = 0, next = 0;
    while (next < count) {
        int32_t level = voxels[next].level;
        for (; next < count && voxels[next].level == level; next++) left[kept++] = voxels[next];
        for (int taken = 1; taken;) {
            taken = 0;
            /* No two voxels of a class touch, so the order within it does not matter. */
            for (int parity = 0; parity < 8; parity++)
                for (Py_ssize_t v = 0; v < kept; v++)
                    if (left[v].parity == parity && block[left[v].at] && simple(around, block, left[v].at))
                        block[left[v].at] = 0, taken = 1;
            Py_ssize_t still = 0;
            for (Py_ssize_t v = 0; v < kept; v++)
                if (block[left[v].at]) left[still++] = left[v];
            kept = still;
        }
    }
}

/* As `handles.carve` says; the outermost voxels of the block are background. */
static int carve(uint8_t *block, const float *distance, const Shape *shape, double level_mm) {
    Py_ssize_t size = shape->x * shape->y * shape->z, count = 0;
    Voxel *voxels = malloc(2 * sizeof *voxels * (size_t)size);
    Py_ssize_t *first = calloc(LEVELS + 1, sizeof *first); /* place of each level, the farthest first */
    int ready = voxels && first;
    if (ready) {
        for (Py_ssize_t at = 0; at < size; at++)
            if (block[at] && distance[at] >= 0) first[LEVELS - level_of(distance[at], level_mm)]++;
        for (int level = 0; level < LEVELS; level++) first[level + 1] += first[level];
        count = first[LEVELS];
        for (Py_ssize_t at = 0; at < size; at++) {
            if (!block[at] || distance[at] < 0) continue;
            Py_ssize_t z = at % shape->z, y = at / shape->z % shape->y, x = at / shape->z / shape->y;
            int32_t level = level_of(distance[at], level_mm), parity = (int32_t)(x % 2 * 4 + y % 2 * 2 + z % 2);
            voxels[first[LEVELS - 1 - level]++] = (Voxel){at, level, parity};
        }
        Around around;
        look_around(&around, shape);
        peel(block, &around, voxels, count, voxels + size);
    }
    free(voxels);
    free(first);
    return ready;
}

/* ------------------------------------------------------------------------------------------------------ Python */

/* Whether both buffers hold arrays of this shape, of one byte and of `bytes` bytes; if not, an error is set. */
static int fitting(const Py_buffer *voxels, const Py_buffer *other, size_t bytes, const Shape *shape,
                   Py_ssize_t least) {
    Py_ssize_t sides[3] = {shape->x, shape->y, shape->z}, room = voxels->len;
    int fits = voxels->len <= INT32_MAX && other->len == voxels->len * (Py_ssize_t)bytes;
    for (int i = 0; i < 3; i++) {
        fits = fits && sides[i] >= least && sides[i] <= room && room % sides[i] == 0;
        if (fits) room /= sides[i];
    }
    if (!fits || room != 1) PyErr_SetString(PyExc_ValueError, "the shape does not fit the buffers");
    return fits && room == 1;
}

static PyObject *py_signed_distances(PyObject *module, PyObject *args) {
    Py_buffer masks, out;
    Shape shape;
    double clip;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*w*(nnn)d", &masks, &out, &shape.x, &shape.y, &shape.z, &clip)) return NULL;
    int fits = fitting(&masks, &out, sizeof(float), &shape, 1), done = 1;
    if (fits && !(clip > 0 && clip < 10000)) {
        PyErr_SetString(PyExc_ValueError, "the clip is out of range");
        fits = 0;
    }
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        done = signed_distances(masks.buf, out.buf, &shape, clip);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&masks);
    PyBuffer_Release(&out);
    if (!fits) return NULL;
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_crumbs(PyObject *module, PyObject *args) {
    Py_buffer set, crumb;
    Shape shape;
    int kind, most;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*w*(nnn)pi", &set, &crumb, &shape.x, &shape.y, &shape.z, &kind, &most))
        return NULL;
    int fits = fitting(&set, &crumb, 1, &shape, 1);
    if (fits && (most < 0 || most > MOST)) {
        PyErr_SetString(PyExc_ValueError, "so large a piece is no crumb");
        fits = 0;
    }
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        find_crumbs(set.buf, crumb.buf, &shape, kind, most);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&set);
    PyBuffer_Release(&crumb);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_carve(PyObject *module, PyObject *args) {
    Py_buffer block, distance;
    Shape shape;
    double level_mm;
    (void)module;
    if (!PyArg_ParseTuple(args, "w*y*(nnn)d", &block, &distance, &shape.x, &shape.y, &shape.z, &level_mm))
        return NULL;
    int fits = fitting(&block, &distance, sizeof(float), &shape, 3), done = 1;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        done = carve(block.buf, distance.buf, &shape, level_mm);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&block);
    PyBuffer_Release(&distance);
    if (!fits) return NULL;
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"signed_distances", py_signed_distances, METH_VARARGS,
     "signed_distances(masks, out, shape, clip): of each plane of bool (X, Y, Z) to float32 `out`."},
    {"crumbs", py_crumbs, METH_VARARGS,
     "crumbs(mask, out, shape, kind, most): mark in bool `out` the small pieces of `kind`, plane by plane."},
    {"carve", py_carve, METH_VARARGS,
     "carve(block, distance, shape, level): take simple voxels out of bool `block`, by levels of float32 `distance`."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_voxels", "Distances, crumbs and carving of voxels.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__voxels(void) { return PyModuleDef_Init(&definition); }
