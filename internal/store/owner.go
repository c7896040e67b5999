package store

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/orgd/orgd/internal/durable"
	"github.com/orgd/orgd/internal/problem"
)

// ownerFile says which process has the data directory, for where locks do not:
// on some file systems that are mounted twice a lock is known to one mount only.
// The process that has the directory writes to the file every beatTime. Whoever
// finds the file of another machine, or of another mount, waits for staleTime: if
// the file changes, its process lives.
const ownerFile = "orgd.owner"

const (
	beatTime  = time.Second
	staleTime = 3500 * time.Millisecond
	// sureTime is for how long a look at the file is believed.
	sureTime = 2 * beatTime
)

// released is how a file begins that no process has.
const released = "- "

// An owner holds a data directory. It is safe for concurrent use.
type owner struct {
	path  string
	log   *slog.Logger
	token []byte   // names this process, its machine and its mount; a line
	lock  *os.File // orgd.lock
	file  *os.File // locked in another way than that, where there is one

	mu   sync.Mutex // held while the heart beats
	beat int
	last atomic.Int64 // when the file was last seen to be ours, as Unix nanoseconds
	lost atomic.Bool  // another process has the directory

	stop chan struct{}
	done chan struct{}
}

// ownerHooks replace what a test cannot have: two mounts, and other file systems.
type ownerHooks struct {
	unlocked bool   // locks do not keep anybody out
	mount    string // instead of the real one
	noMemory bool   // files cannot be mapped into memory that is shared
}

// own takes the data directory, or fails if another process has it.
func own(dir string, log *slog.Logger, hooks ownerHooks) (_ *owner, err error) {
	o := &owner{path: filepath.Join(dir, ownerFile), log: log, stop: make(chan struct{}), done: make(chan struct{})}
	defer func() {
		if err != nil {
			o.close()
		}
	}()
	if o.lock, err = lockFile(filepath.Join(dir, "orgd.lock"), tryLock, hooks); err != nil {
		return nil, err
	}
	if o.file, err = lockFile(o.path, tryRangeLock, hooks); err != nil {
		return nil, err
	}
	if hooks.mount == "" {
		hooks.mount = mountOf(dir)
	}
	here := machine() + " " + hooks.mount
	o.token = fmt.Appendf(nil, "%s %s\n", here, rand.Text())
	found, err := os.ReadFile(o.path)
	if err != nil {
		return nil, err
	}
	foreign := len(found) > 0 && found[0] != released[0] && !bytes.HasPrefix(found, []byte(here+" "))
	if foreign {
		log.Info("the data directory was last used on another machine or mount: waiting whether it still is", "seconds", staleTime.Seconds())
		time.Sleep(staleTime)
		if now, err := os.ReadFile(o.path); err != nil {
			return nil, err
		} else if !bytes.Equal(now, found) {
			return nil, errUsed
		}
	}
	if err := o.write(); err != nil {
		return nil, err
	}
	if foreign {
		// Another may have waited at the same time, and who was believed to have
		// stopped may just have looked: what it has seen holds for sureTime.
		time.Sleep(sureTime + beatTime/2)
	}
	if !o.check() {
		return nil, errUsed
	}
	go o.run()
	return o, nil
}

var errUsed = errors.New("another process is using it; stop that process, or choose another data directory")

// lockFile opens a file and takes a lock on it. It is closed if that fails.
func lockFile(path string, try func(*os.File) (bool, error), hooks ownerHooks) (*os.File, error) {
	f, err := durable.Open(path, os.O_RDWR)
	if err != nil || hooks.unlocked {
		return f, err
	}
	locked, err := try(f)
	if err == nil && !locked {
		err = errUsed
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// beatAgain says that this process still has the directory, if it has. The check
// comes right before: between the two the process may be stopped.
func (o *owner) beatAgain() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.check() {
		return false
	}
	o.write() // whoever waits for it hears nothing if it fails: the locks hold
	return true
}

// write says that this process has the directory.
func (o *owner) write() error {
	o.beat++
	text := fmt.Appendf(nil, "%s%020d\n", o.token, o.beat)
	if _, err := o.file.WriteAt(text, 0); err != nil {
		return err
	}
	if info, err := o.file.Stat(); err != nil || info.Size() == int64(len(text)) {
		return err
	}
	return o.file.Truncate(int64(len(text)))
}

// check reports whether this process has the directory. Once it has not, it never
// has again.
func (o *owner) check() bool {
	if o.lost.Load() {
		return false
	}
	now := time.Now()
	b, err := os.ReadFile(o.path)
	switch {
	case err == nil && bytes.HasPrefix(b, o.token):
		o.last.Store(now.UnixNano())
	case err == nil || errors.Is(err, fs.ErrNotExist):
		if !o.lost.Swap(true) {
			o.log.Error("another process has taken the data directory: nothing is changed any more; stop one of them and start again", "file", o.path)
		}
		return false
	}
	return true // an error of the disk says nothing
}

// sure is check for whoever is about to change something. It looks only if that
// was not done for a while: the process may have been stopped.
func (o *owner) sure() error {
	if !o.lost.Load() && time.Since(time.Unix(0, o.last.Load())) < sureTime || o.check() {
		return nil
	}
	return problem.New(problem.Unavailable, "Another process has taken the server's data directory; nothing was changed.").
		WithFix("The operator has to stop one of the two, and start the server again.")
}

func (o *owner) run() {
	defer close(o.done)
	beats := time.NewTicker(beatTime)
	defer beats.Stop()
	for {
		select {
		case <-o.stop:
			return
		case <-beats.C:
			if !o.beatAgain() {
				return
			}
		}
	}
}

// close gives the directory back. Nobody waits after that.
func (o *owner) close() error {
	if o.token != nil && o.last.Load() != 0 {
		close(o.stop)
		<-o.done
	}
	var errs []error
	if o.file != nil {
		if o.last.Load() != 0 && o.check() {
			_, err := o.file.WriteAt([]byte(released), 0) // what it takes of the disk stays
			errs = append(errs, err)
		}
		errs = append(errs, o.file.Close())
	}
	if o.lock != nil {
		errs = append(errs, o.lock.Close())
	}
	return errors.Join(errs...)
}
