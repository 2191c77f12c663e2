package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// account is the user that the server runs as. PostgreSQL refuses to run as root.
type account struct {
	name     string
	uid, gid uint32
	dropped  bool // this process is root, and the server runs as somebody else
}

// serverAccount returns our own account, or postgres, or nobody, when we are root.
func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{name: "uid " + strconv.Itoa(os.Geteuid()), uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uerr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gerr := strconv.ParseUint(u.Gid, 10, 32)
		if uerr == nil && gerr == nil && uid != 0 {
			return account{name: name, uid: uint32(uid), gid: uint32(gid), dropped: true}, nil
		}
	}
	return account{}, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody to run it as")
}

// credential is nil where the server runs as ourselves.
func (a account) credential() *syscall.Credential {
	if !a.dropped {
		return nil
	}
	return &syscall.Credential{Uid: a.uid, Gid: a.gid}
}

// UnreachableError says that the server's user may not enter a folder.
type UnreachableError struct {
	Path   string // what was to be reached
	Folder string // the folder on the way that refuses
	Mode   fs.FileMode
	User   string
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("PostgreSQL runs as user %s here and cannot reach %s: %s has mode %04o; choose a folder elsewhere, such as /var/lib/featuremill, or run: chmod o+x %s",
		e.User, e.Path, e.Folder, e.Mode.Perm(), e.Folder)
}

// canReach checks that the account may pass every folder on the way to path.
func (a account) canReach(path string) error {
	if !a.dropped {
		return nil // our own failures speak for themselves
	}
	var way []string
	for dir := path; ; dir = filepath.Dir(dir) {
		way = append(way, dir)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	for _, dir := range slices.Backward(way) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if !a.mayExecute(info) {
			return &UnreachableError{Path: path, Folder: dir, Mode: info.Mode(), User: a.name}
		}
	}
	return nil
}

// mayExecute reads the mode bits only: access lists are rare on the folders in question, and a wrong
// yes is found by the server itself a moment later.
func (a account) mayExecute(info fs.FileInfo) bool {
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	switch {
	case owner.Uid == a.uid:
		return info.Mode()&0o100 != 0
	case owner.Gid == a.gid:
		return info.Mode()&0o010 != 0
	}
	return info.Mode()&0o001 != 0
}

// makeDir makes a folder that belongs to the account and that nobody else may enter.
func (a account) makeDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return a.own(path)
}

func (a account) own(path string) error {
	if a.dropped {
		if err := os.Chown(path, int(a.uid), int(a.gid)); err != nil {
			return err
		}
	}
	return os.Chmod(path, 0o700)
}

// TempDir makes a fresh temporary folder that the server's user can reach. (Those of testing.T lie in
// a folder of mode 0700, which shuts that user out when we are root.) The caller removes it.
func TempDir() (string, error) {
	dir, err := os.MkdirTemp("", "featuremill-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return "", errors.Join(err, os.Remove(dir))
	}
	return dir, nil
}
